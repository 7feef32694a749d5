//! Where text goes: standard output and error, colour, and progress. Everything a command prints
//! passes here, so tests can read it.

pub mod age;
pub mod objects;
pub mod printers;
pub mod progress;
pub mod table;
pub mod tabs;
pub mod yaml;

use std::io::{IsTerminal, Write};
use std::sync::{Arc, Mutex};

use anstyle::{AnsiColor, Style};

use crate::error::{Failure, Outcome};

/// Both outputs of the program. Clones write to the same place.
#[derive(Clone)]
pub struct Out {
    captured: Option<Arc<Mutex<Captured>>>,
    /// Standard output is a terminal.
    pub terminal: bool,
    /// Standard error is a terminal, so progress may move.
    pub lively: bool,
    colour: bool,
    /// Colour on standard error, judged on its own.
    error_colour: bool,
}

/// What a command printed, in a test.
#[derive(Debug, Default, Clone)]
pub struct Captured {
    pub out: Vec<u8>,
    pub err: Vec<u8>,
}

impl Out {
    /// The process's own standard output and error.
    pub fn standard() -> Self {
        let terminal = std::io::stdout().is_terminal();
        let lively = std::io::stderr().is_terminal();
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
            && std::env::var_os("TERM").is_none_or(|term| term != "dumb");
        Self {
            captured: None,
            terminal,
            lively,
            colour: terminal && wanted,
            error_colour: lively && wanted,
        }
    }

    /// Collects everything instead.
    pub fn captured() -> (Self, Arc<Mutex<Captured>>) {
        let captured = Arc::new(Mutex::new(Captured::default()));
        let out = Self {
            captured: Some(captured.clone()),
            terminal: false,
            lively: false,
            colour: false,
            error_colour: false,
        };
        (out, captured)
    }

    /// A line on standard output.
    pub fn line(&self, text: impl AsRef<str>) -> Outcome {
        let mut bytes = text.as_ref().as_bytes().to_vec();
        bytes.push(b'\n');
        self.bytes(&bytes)
    }

    /// Bytes on standard output, at once.
    pub fn bytes(&self, bytes: &[u8]) -> Outcome {
        if let Some(captured) = &self.captured {
            captured.lock().expect("no writer panics").out.extend_from_slice(bytes);
            return Ok(());
        }
        let mut stdout = std::io::stdout().lock();
        stdout.write_all(bytes).and_then(|()| stdout.flush()).map_err(|_| Failure::OutputClosed)
    }

    /// A line on standard error. Nobody reading it is no reason to stop.
    pub fn note(&self, text: impl AsRef<str>) {
        let mut bytes = text.as_ref().as_bytes().to_vec();
        bytes.push(b'\n');
        self.error_bytes(&bytes);
    }

    pub fn error_bytes(&self, bytes: &[u8]) {
        if let Some(captured) = &self.captured {
            captured.lock().expect("no writer panics").err.extend_from_slice(bytes);
            return;
        }
        let mut stderr = std::io::stderr().lock();
        let _ = stderr.write_all(bytes).and_then(|()| stderr.flush());
    }

    /// A failure, with its first word and its hint set off on a terminal.
    pub fn failure(&self, failure: &Failure) {
        let text = failure.to_string();
        if text.is_empty() {
            return;
        }
        if !self.error_colour {
            return self.note(text);
        }
        let red = Style::new().fg_color(Some(AnsiColor::Red.into())).bold();
        let cyan = Style::new().fg_color(Some(AnsiColor::Cyan.into()));
        for line in text.lines() {
            let styled = if let Some(rest) = line.strip_prefix("error:") {
                format!("{red}error:{red:#}{rest}")
            } else if let Some(rest) = line.strip_prefix("hint:") {
                format!("{cyan}hint:{cyan:#}{rest}")
            } else {
                line.to_owned()
            };
            self.note(styled);
        }
    }

    /// `text` in a colour, on a terminal that wants it.
    pub fn paint(&self, colour: AnsiColor, text: &str) -> String {
        if !self.colour {
            return text.to_owned();
        }
        let style = Style::new().fg_color(Some(colour.into()));
        format!("{style}{text}{style:#}")
    }

    /// A table cell, coloured by what it says where its column has states.
    pub fn paint_cell(&self, header: &str, cell: String) -> String {
        if !self.colour || !matches!(header, "STATUS" | "STATE" | "TYPE" | "REASON") {
            return cell;
        }
        match state_colour(&cell) {
            Some(colour) => self.paint(colour, &cell),
            None => cell,
        }
    }
}

fn state_colour(state: &str) -> Option<AnsiColor> {
    match state {
        "Running" | "Ready" | "Active" | "Completed" | "Good" | "bon" | "good" => {
            Some(AnsiColor::Green)
        }
        "Pending"
        | "ContainerCreating"
        | "PodInitializing"
        | "Terminating"
        | "Warning"
        | "Unknown"
        | "Ready,SchedulingDisabled" => Some(AnsiColor::Yellow),
        s if s.starts_with("Init:") && !s.contains("Err") && !s.contains("BackOff") => {
            Some(AnsiColor::Yellow)
        }
        s if s.contains("Err")
            || s.contains("BackOff")
            || s.starts_with("NotReady")
            || matches!(s, "Failed" | "OOMKilled" | "Evicted" | "Weak" | "faible" | "weak") =>
        {
            Some(AnsiColor::Red)
        }
        _ => None,
    }
}
