//! Progress of long work: a spinner or bars on a terminal, plain lines else, always on standard
//! error so that standard output stays usable in a pipe.

use std::sync::Mutex;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::Out;

const TICK: Duration = Duration::from_millis(100);

/// One line that tells how far the work is.
pub struct Spinner {
    out: Out,
    bar: Option<ProgressBar>,
    last: Mutex<String>,
}

impl Spinner {
    pub fn start(out: &Out) -> Self {
        let bar = out.lively.then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            let style = ProgressStyle::with_template("{spinner:.cyan} {msg} {elapsed:.dim}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
            bar.enable_steady_tick(TICK);
            bar
        });
        Self { out: out.clone(), bar, last: Mutex::new(String::new()) }
    }

    /// Replaces the text; without a terminal a line is printed when it changed.
    pub fn say(&self, text: impl Into<String>) {
        let text = text.into();
        if let Some(bar) = &self.bar {
            bar.set_message(text);
            return;
        }
        let mut last = self.last.lock().expect("no writer panics");
        if *last != text {
            self.out.note(&text);
            *last = text;
        }
    }

    /// Runs `print` with the spinner out of the way.
    pub fn suspend<T>(&self, print: impl FnOnce() -> T) -> T {
        match &self.bar {
            Some(bar) => bar.suspend(print),
            None => print(),
        }
    }
}

impl Drop for Spinner {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Bytes or counts out of a known total.
pub struct Bar {
    bar: Option<ProgressBar>,
}

impl Bar {
    /// `bytes` chooses between `12.3 MiB/40 MiB` and `12/40`.
    pub fn start(out: &Out, what: &str, total: u64, bytes: bool) -> Self {
        let bar = out.lively.then(|| {
            let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
            let template = if bytes {
                "{msg} [{bar:30.cyan/dim}] {bytes}/{total_bytes} {bytes_per_sec} eta {eta}"
            } else {
                "{msg} [{bar:30.cyan/dim}] {pos}/{len} eta {eta}"
            };
            let style = ProgressStyle::with_template(template);
            bar.set_style(
                style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> "),
            );
            bar.set_message(what.to_owned());
            bar
        });
        Self { bar }
    }

    pub fn set(&self, done: u64) {
        if let Some(bar) = &self.bar {
            bar.set_position(done);
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
