//! `lab status` and `lab logs`.

use std::collections::HashMap;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::time::Duration;

use timonier_proto::Kind;

use super::{Lab, process};
use crate::client::calls::Filter;
use crate::context::Ctx;
use crate::error::{Outcome, fail};
use crate::fields::Fields;
use crate::output::printers::node_status;
use crate::output::table::Table;

/// Bytes of a log read at once; a tail looks no further back.
const CHUNK_BYTES: u64 = 1 << 20;
const FOLLOW_INTERVAL: Duration = Duration::from_millis(200);

pub async fn status(ctx: &Ctx, lab: &Lab) -> Outcome {
    let nodes = lab.nodes();
    let Some(state) = lab.state.as_ref().filter(|_| lab.dir.exists()) else {
        return Err(
            fail(format!("no lab in {}", lab.dir.display())).hint("timonctl lab up --agents 3")
        );
    };
    let client = lab.client(&state.addresses(), Some(Duration::from_secs(3)));
    let objects = client.list(Kind::Node, &Filter::default()).await;
    let ready: HashMap<String, String> =
        objects.iter().flatten().map(|n| (n.name().to_owned(), node_status(n))).collect();
    let masters = lab.masters();
    let listed = client.masters().await.map(|reply| reply.masters).unwrap_or_default();
    let answering: Vec<String> =
        listed.into_iter().filter(|master| master.answers).map(|master| master.name).collect();
    let headers = ["NAME", "PROCESS", "STATUS", "LOG"];
    let mut table = Table::new(headers.map(str::to_owned).to_vec());
    let mut all_well = true;
    for name in lab.masters().into_iter().chain(nodes) {
        let process = process::find(lab, &name);
        let told = match masters.contains(&name) {
            true => answering.contains(&name).then(|| "Ready".to_owned()),
            false => ready.get(&name).cloned(),
        };
        let status = match (&process, told) {
            (None, _) => "Stopped".to_owned(),
            (Some(_), Some(told)) => told,
            (Some(_), None) => "Unknown".to_owned(),
        };
        all_well &= status.starts_with("Ready");
        let pid = process.map_or_else(|| "-".to_owned(), |p| p.pid.to_string());
        let log = lab.log(&name).display().to_string();
        table.row(vec![name, pid, status, log]);
    }
    let paint = |header: &str, cell: String| ctx.out.paint_cell(header, cell);
    table.take_lines(true, paint).iter().try_for_each(|line| ctx.out.line(line))?;
    if all_well {
        return Ok(());
    }
    ctx.out.note(
        "hint: timonctl lab up starts what does not run; timonctl lab logs tells why it stopped",
    );
    Err(crate::told(1))
}

pub async fn logs(
    ctx: &Ctx,
    lab: &Lab,
    names: &[String],
    follow: bool,
    tail_lines: i64,
) -> Outcome {
    let all: Vec<String> = lab.masters().into_iter().chain(lab.nodes()).collect();
    if let Some(unknown) = names.iter().find(|name| !all.contains(name)) {
        return Err(fail(format!("the lab has no part {unknown:?}"))
            .hint(format!("it has: {}", all.join(", "))));
    }
    let names = if names.is_empty() { &all } else { names };
    let several = names.len() > 1;
    let mut ends = Vec::new();
    for name in names {
        let path = lab.log(name);
        let end = std::fs::metadata(&path).map_or(0, |m| m.len());
        let lines = usize::try_from(tail_lines).unwrap_or(usize::MAX);
        print(ctx, name, several, &tail(&path, lines).unwrap_or_default())?;
        ends.push((name, path, end));
    }
    if !follow {
        return Ok(());
    }
    loop {
        for (name, path, end) in &mut ends {
            let (text, next) = since(path, *end);
            *end = next;
            print(ctx, name, several, &text)?;
        }
        tokio::select! {
            () = tokio::time::sleep(FOLLOW_INTERVAL) => {}
            stop = crate::interrupted() => return stop,
        }
    }
}

fn print(ctx: &Ctx, name: &str, several: bool, text: &str) -> Outcome {
    for line in text.lines() {
        let line = if ctx.out.terminal { line.to_owned() } else { without_colours(line) };
        if several {
            ctx.out.line(format!("[{name}] {line}"))?;
        } else {
            ctx.out.line(line)?;
        }
    }
    Ok(())
}

/// The last lines of a file.
pub(super) fn tail(path: &Path, lines: usize) -> Option<String> {
    let mut file = std::fs::File::open(path).ok()?;
    let size = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(size.saturating_sub(CHUNK_BYTES))).ok()?;
    let mut bytes = Vec::new();
    file.take(CHUNK_BYTES).read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let all: Vec<&str> = text.lines().collect();
    Some(all[all.len().saturating_sub(lines)..].join("\n"))
}

/// Whole lines written after `from`, and where they end. A shorter file was started anew.
fn since(path: &Path, from: u64) -> (String, u64) {
    let read = || -> std::io::Result<(String, u64)> {
        let mut file = std::fs::File::open(path)?;
        let size = file.metadata()?.len();
        let from = if size < from { 0 } else { from };
        file.seek(SeekFrom::Start(from))?;
        let mut bytes = Vec::new();
        file.take(CHUNK_BYTES).read_to_end(&mut bytes)?;
        let whole = bytes.iter().rposition(|b| *b == b'\n').map_or(0, |end| end + 1);
        Ok((String::from_utf8_lossy(&bytes[..whole]).into_owned(), from + whole as u64))
    };
    read().unwrap_or((String::new(), from))
}

/// Drops terminal escape sequences that a log may hold.
pub(super) fn without_colours(line: &str) -> String {
    let mut out = String::with_capacity(line.len());
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        if c == '\u{1b}' {
            chars.by_ref().find(char::is_ascii_alphabetic);
        } else {
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logs_are_followed_by_whole_lines() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.log");
        std::fs::write(&path, "one\ntwo\nthr").unwrap();
        assert_eq!(tail(&path, 2).unwrap(), "two\nthr");
        assert_eq!(since(&path, 4), ("two\n".into(), 8));
        std::fs::write(&path, "new\n").unwrap();
        assert_eq!(since(&path, 8), ("new\n".into(), 4));
        assert_eq!(without_colours("\u{1b}[32mINFO\u{1b}[0m x"), "INFO x");
    }
}
