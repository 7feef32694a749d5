//! The reference page, made from the commands' own help so that it cannot fall behind.

use std::fmt::Write;

use clap::Command;

/// Heading of the options that every command has.
pub const GLOBAL_HEADING: &str = "Global options";

/// Width of the help texts in the page.
const WIDTH: usize = 100;

/// One section a command, nested commands below their parents.
pub fn markdown(root: &Command) -> String {
    let mut page = String::from(
        "# timonctl\n\nThe help of every command. Made by `timonctl help-pages`; do not edit by hand.\n",
    );
    let mut root = root.clone().term_width(WIDTH);
    root.build();
    section(&mut page, &root, 2);
    page
}

fn section(page: &mut String, command: &Command, level: usize) {
    let mut command = command.clone().term_width(WIDTH);
    if level > 2 {
        // They are the same everywhere and stand at the top of the page.
        let global = |arg: &clap::Arg| arg.get_help_heading() == Some(GLOBAL_HEADING);
        command = command.mut_args(|arg| if global(&arg) { arg.hide(true) } else { arg });
    }
    let name = command.get_bin_name().unwrap_or(command.get_name()).to_owned();
    let help = command.render_long_help().to_string();
    let help: Vec<&str> = help.trim_end().lines().map(str::trim_end).collect();
    let marks = "#".repeat(level);
    // Writing to a String cannot fail.
    let _ = write!(page, "\n{marks} {name}\n\n```text\n{}\n```\n", help.join("\n"));
    for sub in command.get_subcommands() {
        if !sub.is_hide_set() && sub.get_name() != "help" {
            section(page, sub, (level + 1).min(4));
        }
    }
}
