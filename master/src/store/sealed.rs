//! A file sealed as a stream: pieces of 64 KiB, each with its place in the file, so that none can
//! be changed, left out, moved or brought in from another file without being found out.
//!
//! Head: magic, number of the key, 16 random bytes that name the file. Then for each piece its
//! length (the highest bit marks the last one), a checksum, and the sealed bytes. The checksum
//! tells damage from a wrong key. What is in the file is [`super::snapshot_file`]'s.

use std::io::{self, Read, Write};
use std::sync::Arc;

use super::keyring::{DataKey, KeyId, Keyring, OpenError, SEAL_BYTES};

const MAGIC: &[u8; 18] = b"timonier sealed 1\n";
const HEAD_BYTES: usize = MAGIC.len() + 2 + FILE_ID_BYTES;
const FILE_ID_BYTES: usize = 16;
const PIECE_BYTES: usize = 64 << 10;
const LAST: u32 = 1 << 31;

/// Of the file's head, of which piece, whether the last: a piece's associated data.
fn associated(head: &[u8; HEAD_BYTES], number: u64, last: bool) -> [u8; HEAD_BYTES + 9] {
    let mut bytes = [0; HEAD_BYTES + 9];
    bytes[..HEAD_BYTES].copy_from_slice(head);
    bytes[HEAD_BYTES..HEAD_BYTES + 8].copy_from_slice(&number.to_le_bytes());
    bytes[HEAD_BYTES + 8] = u8::from(last);
    bytes
}

/// Seals what is written; nothing of the last piece is there before [`Self::finish`].
pub struct Sealer<'a, W> {
    out: W,
    keyring: &'a Keyring,
    key: Arc<DataKey>,
    head: [u8; HEAD_BYTES],
    number: u64,
    plain: Vec<u8>,
    sealed: Vec<u8>,
}

impl<'a, W: Write> Sealer<'a, W> {
    pub fn new(mut out: W, keyring: &'a Keyring, key: Arc<DataKey>) -> io::Result<Self> {
        let mut head = [0; HEAD_BYTES];
        head[..MAGIC.len()].copy_from_slice(MAGIC);
        head[MAGIC.len()..MAGIC.len() + 2].copy_from_slice(&key.id.to_le_bytes());
        head[MAGIC.len() + 2..].copy_from_slice(uuid::Uuid::new_v4().as_bytes());
        out.write_all(&head)?;
        let (plain, sealed) = (Vec::with_capacity(PIECE_BYTES), Vec::new());
        Ok(Self { out, keyring, key, head, number: 0, plain, sealed })
    }

    fn piece(&mut self, last: bool) -> io::Result<()> {
        let bound = associated(&self.head, self.number, last);
        self.sealed.clear();
        self.keyring.seal(&self.key, &bound, &self.plain, &mut self.sealed);
        let length = u32::try_from(self.sealed.len()).expect("a piece has some KiB");
        self.out.write_all(&(if last { length | LAST } else { length }).to_le_bytes())?;
        self.out.write_all(&crc32fast::hash(&self.sealed).to_le_bytes())?;
        self.out.write_all(&self.sealed)?;
        self.plain.clear();
        self.number += 1;
        Ok(())
    }

    /// Writes the last piece.
    pub fn finish(mut self) -> io::Result<W> {
        self.piece(true)?;
        Ok(self.out)
    }
}

impl<W: Write> Write for Sealer<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.plain.len() == PIECE_BYTES {
            self.piece(false)?;
        }
        let taken = bytes.len().min(PIECE_BYTES - self.plain.len());
        self.plain.extend_from_slice(&bytes[..taken]);
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Reads a sealed file, or one that is not, from its begin.
pub struct Unsealer<'a, R> {
    source: R,
    keyring: &'a Keyring,
    /// `None`: it is not sealed.
    head: Option<[u8; HEAD_BYTES]>,
    number: u64,
    /// Readable bytes, from `at` on.
    plain: Vec<u8>,
    at: usize,
    ended: bool,
}

impl<'a, R: Read> Unsealer<'a, R> {
    pub fn new(mut source: R, keyring: &'a Keyring) -> io::Result<Self> {
        let mut begin = Vec::with_capacity(HEAD_BYTES);
        source.by_ref().take(HEAD_BYTES as u64).read_to_end(&mut begin)?;
        let head = begin.first_chunk().copied().filter(|head| head.starts_with(MAGIC));
        let plain = if head.is_some() { Vec::new() } else { begin };
        Ok(Self { source, keyring, head, number: 0, plain, at: 0, ended: false })
    }

    fn next_piece(&mut self, head: &[u8; HEAD_BYTES]) -> io::Result<()> {
        let early = |_| damage("it ends too early");
        let mut prefix = [0; 8];
        self.source.read_exact(&mut prefix).map_err(early)?;
        let [a, b, c, d, crc @ ..] = prefix;
        let marked = u32::from_le_bytes([a, b, c, d]);
        let (length, last) = ((marked & !LAST) as usize, marked & LAST != 0);
        if !(SEAL_BYTES..=PIECE_BYTES + SEAL_BYTES).contains(&length) {
            return Err(damage("a piece of it has an impossible length"));
        }
        self.plain.resize(length, 0);
        self.at = 0;
        self.source.read_exact(&mut self.plain).map_err(early)?;
        if crc32fast::hash(&self.plain) != u32::from_le_bytes(crc) {
            return Err(damage("the checksum of a piece of it does not match"));
        }
        let bound = associated(head, self.number, last);
        (self.keyring.unseal(key_in(head), &bound, &mut self.plain)).map_err(io::Error::other)?;
        self.number += 1;
        self.ended = last;
        Ok(())
    }
}

fn key_in(head: &[u8; HEAD_BYTES]) -> KeyId {
    u16::from_le_bytes([head[MAGIC.len()], head[MAGIC.len() + 1]])
}

fn damage(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

/// The wrong keyring, if that is why reading failed.
pub fn open_error(error: &io::Error) -> Option<&OpenError> {
    error.get_ref()?.downcast_ref()
}

/// What a file is sealed with, by its first bytes; `None` when it is not.
pub fn key_of(mut source: impl Read) -> io::Result<Option<KeyId>> {
    let mut begin = Vec::with_capacity(HEAD_BYTES);
    source.by_ref().take(HEAD_BYTES as u64).read_to_end(&mut begin)?;
    Ok(begin.first_chunk().filter(|head| head.starts_with(MAGIC)).map(key_in))
}

impl<R: Read> Read for Unsealer<'_, R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        loop {
            if self.at < self.plain.len() {
                let given = out.len().min(self.plain.len() - self.at);
                out[..given].copy_from_slice(&self.plain[self.at..self.at + given]);
                self.at += given;
                return Ok(given);
            }
            match self.head {
                None => return self.source.read(out),
                Some(_) if self.ended => return Ok(0),
                Some(head) => self.next_piece(&head)?,
            }
        }
    }
}
