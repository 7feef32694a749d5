//! Damage to the log of a master that does not run.

use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The one that the master wrote to last.
pub fn newest_segment(folder: &Path) -> Result<PathBuf> {
    let mut segments: Vec<(u64, PathBuf)> = Vec::new();
    for entry in std::fs::read_dir(folder).context("list the log")? {
        let path = entry?.path();
        // Segments are reserved whole: the one that is written to has bytes in it, spares do not.
        let mut begin = [0; 4];
        let file = std::fs::File::open(&path)?;
        let is_written = (&file).read_exact(&mut begin).is_ok() && begin != [0; 4];
        if path.extension().is_some_and(|e| e == "log") && is_written {
            segments.push((file.metadata()?.len(), path));
        }
    }
    segments.sort_by(|a, b| a.1.cmp(&b.1));
    segments.pop().map(|(_, path)| path).context("the log has no segment")
}

/// In the middle of what was written, where it cannot be taken for a torn end.
pub fn flip_a_byte(segment: &Path) -> Result<()> {
    let mut file = std::fs::File::options().read(true).write(true).open(segment)?;
    let at = written_bytes(&mut file)? / 2;
    let mut byte = [0];
    file.seek(SeekFrom::Start(at))?;
    file.read_exact(&mut byte)?;
    file.seek(SeekFrom::Start(at))?;
    file.write_all(&[byte[0] ^ 0x10])?;
    Ok(())
}

pub fn cut_in_half(segment: &Path) -> Result<()> {
    let mut file = std::fs::File::options().read(true).write(true).open(segment)?;
    let half = written_bytes(&mut file)? / 2;
    file.set_len(half)?;
    Ok(())
}

/// Up to the last byte that is not zero.
fn written_bytes(file: &mut std::fs::File) -> Result<u64> {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0))?;
    file.read_to_end(&mut bytes)?;
    let end = bytes.iter().rposition(|byte| *byte != 0).context("the segment is empty")?;
    Ok(end as u64)
}
