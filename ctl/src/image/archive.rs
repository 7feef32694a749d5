//! An archive in the form of `docker save`: what images it holds, and which of its bytes a node
//! needs that has some of the layers already.
//!
//! Nothing is unpacked: an archive is a list of ranges of a file, and a smaller archive is some of
//! these ranges. Docker's load takes one whose files of known layers are missing.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::{Failure, Outcome, fail};

const BLOCK_BYTES: u64 = 512;
/// Two blocks of zeros end an archive.
const END_BYTES: usize = 1024;
/// Bounds of what is read whole.
const MANIFEST_BYTES_MAX: u64 = 16 << 20;
const CONFIG_BYTES_MAX: u64 = 16 << 20;
const ENTRIES_MAX: usize = 100_000;

const MANIFEST: &str = "manifest.json";
/// Other lists of the images, which would name more than is sent of an archive of several.
const OTHER_LISTS: &[&str] = &["repositories", "index.json", "oci-layout"];

#[derive(Debug)]
pub struct Archive {
    file: File,
    segments: Vec<Segment>,
    pub images: Vec<Image>,
}

/// One image of an archive.
#[derive(Debug, Clone, PartialEq)]
pub struct Image {
    /// Names with tags; empty for an image without.
    pub references: Vec<String>,
    /// `sha256:…` of its configuration.
    pub id: String,
    /// Of its layers, from the lowest.
    pub diff_ids: Vec<String>,
    manifest: ManifestEntry,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ManifestEntry {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

#[derive(Deserialize)]
struct Config {
    rootfs: RootFs,
}

#[derive(Deserialize)]
struct RootFs {
    #[serde(default)]
    diff_ids: Vec<String>,
}

/// A file of the archive with all its headers.
#[derive(Debug)]
struct Segment {
    path: PathBuf,
    start: u64,
    end: u64,
    content: u64,
    size: u64,
    /// Of a link, what it leads to.
    target: Option<PathBuf>,
}

/// Bytes to send.
#[derive(Debug, Clone, PartialEq)]
pub enum Piece {
    Bytes(Vec<u8>),
    Range { start: u64, length: u64 },
}

impl Piece {
    pub fn length(&self) -> u64 {
        match self {
            Piece::Bytes(bytes) => bytes.len() as u64,
            Piece::Range { length, .. } => *length,
        }
    }
}

impl Archive {
    /// Reads the headers and the lists, not the layers. Blocks.
    pub fn scan(file: File, name: &str) -> Outcome<Self> {
        let wrong = |why: String| -> Failure {
            fail(format!("read image archive {name}: {why}"))
                .hint("an archive as docker save writes it is needed")
        };
        let segments = segments(&file).map_err(|error| wrong(error.to_string()))?;
        let mut archive = Self { file, segments, images: Vec::new() };
        let manifest = archive.read(MANIFEST, MANIFEST_BYTES_MAX).map_err(&wrong)?;
        let entries: Vec<ManifestEntry> = serde_json::from_slice(&manifest)
            .map_err(|error| wrong(format!("{MANIFEST}: {error}")))?;
        for entry in entries {
            let image = archive.image(entry).map_err(&wrong)?;
            archive.images.push(image);
        }
        if archive.images.is_empty() {
            return Err(wrong("it holds no image".into()));
        }
        Ok(archive)
    }

    fn image(&self, manifest: ManifestEntry) -> Result<Image, String> {
        let bytes = self.read(&manifest.config, CONFIG_BYTES_MAX)?;
        let config: Config = serde_json::from_slice(&bytes)
            .map_err(|error| format!("{}: {error}", manifest.config))?;
        let diff_ids = config.rootfs.diff_ids;
        if diff_ids.len() != manifest.layers.len() {
            return Err(format!(
                "{} names {} layers, but {MANIFEST} {}",
                manifest.config,
                diff_ids.len(),
                manifest.layers.len()
            ));
        }
        Ok(Image {
            references: manifest.repo_tags.clone().unwrap_or_default(),
            id: format!("sha256:{}", hex(&Sha256::digest(&bytes))),
            diff_ids,
            manifest,
        })
    }

    fn read(&self, path: &str, bytes_max: u64) -> Result<Vec<u8>, String> {
        let segment = self.find(Path::new(path)).ok_or_else(|| format!("it has no {path}"))?;
        if segment.size > bytes_max {
            return Err(format!("{path} is too large, {} bytes", segment.size));
        }
        let mut bytes = vec![0; usize::try_from(segment.size).map_err(|e| e.to_string())?];
        self.file
            .read_exact_at(&mut bytes, segment.content)
            .map_err(|error| format!("{path}: {error}"))?;
        Ok(bytes)
    }

    fn find(&self, path: &Path) -> Option<&Segment> {
        let path = normal(path);
        self.segments.iter().rev().find(|segment| segment.path == path)
    }

    /// The archive of one image with these of its layers, in the order in which to send it.
    pub fn pieces(&self, image: &Image, wanted: &BTreeSet<String>) -> Vec<Piece> {
        let own = self.layer_files(image);
        let others: BTreeSet<&Path> = self
            .images
            .iter()
            .flat_map(|image| self.layer_files(image).into_keys())
            .filter(|path| !own.contains_key(path))
            .collect();
        let is_alone = self.images.len() == 1;
        let kept = |segment: &&Segment| {
            let path = segment.path.as_path();
            if let Some(diff_ids) = own.get(path) {
                return diff_ids.iter().any(|id| wanted.contains(*id));
            }
            let is_list = path == Path::new(MANIFEST)
                || OTHER_LISTS.iter().any(|list| path == Path::new(list));
            !others.contains(path) && (is_alone || !is_list)
        };
        let mut pieces = Vec::new();
        if !is_alone {
            pieces.push(Piece::Bytes(manifest_file(&image.manifest)));
        }
        for segment in self.segments.iter().filter(kept) {
            let length = segment.end - segment.start;
            match pieces.last_mut() {
                Some(Piece::Range { start, length: last }) if *start + *last == segment.start => {
                    *last += length;
                }
                _ => pieces.push(Piece::Range { start: segment.start, length }),
            }
        }
        pieces.push(Piece::Bytes(vec![0; END_BYTES]));
        pieces
    }

    /// Files that hold an image's layers, links to them included, with the layers they hold.
    fn layer_files<'a>(&'a self, image: &'a Image) -> BTreeMap<&'a Path, BTreeSet<&'a str>> {
        let mut files: BTreeMap<&Path, BTreeSet<&str>> = BTreeMap::new();
        for (path, diff_id) in image.manifest.layers.iter().zip(&image.diff_ids) {
            let Some(segment) = self.find(Path::new(path)) else { continue };
            files.entry(&segment.path).or_default().insert(diff_id);
            if let Some(target) = segment.target.as_deref().and_then(|path| self.find(path)) {
                files.entry(&target.path).or_default().insert(diff_id);
            }
        }
        files
    }

    /// Reads a part of a range. Blocks.
    pub fn read_at(&self, offset: u64, bytes: &mut [u8]) -> std::io::Result<()> {
        self.file.read_exact_at(bytes, offset)
    }
}

/// Each entry with the headers in front of it, in order.
fn segments(file: &File) -> std::io::Result<Vec<Segment>> {
    let mut reader = file;
    std::io::Seek::rewind(&mut reader)?;
    let mut archive = tar::Archive::new(reader);
    let mut segments = Vec::new();
    let mut start = 0;
    for entry in archive.entries_with_seek()? {
        let entry = entry?;
        let path = normal(&entry.path()?);
        let content = entry.raw_file_position();
        let size = entry.size();
        let end = content + size.next_multiple_of(BLOCK_BYTES);
        let target = entry.link_name()?.map(|link| {
            // A hard link is named from the archive's root.
            let from = if entry.header().entry_type().is_symlink() { path.parent() } else { None };
            normal(&from.unwrap_or(Path::new("")).join(link))
        });
        segments.push(Segment { path, start, end, content, size, target });
        start = end;
        if segments.len() > ENTRIES_MAX {
            return Err(std::io::Error::other(format!("more than {ENTRIES_MAX} files")));
        }
    }
    Ok(segments)
}

/// Without `.` and `..`.
fn normal(path: &Path) -> PathBuf {
    let mut parts = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(part) => parts.push(part),
            Component::ParentDir => {
                parts.pop();
            }
            _ => {}
        }
    }
    parts
}

/// A manifest of one image as a file of an archive.
fn manifest_file(entry: &ManifestEntry) -> Vec<u8> {
    let content = serde_json::to_vec(&[entry]).expect("a manifest is plain data");
    let mut header = tar::Header::new_ustar();
    header.set_path(MANIFEST).expect("the name is short");
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    header.set_cksum();
    let mut bytes = header.as_bytes().to_vec();
    bytes.extend_from_slice(&content);
    bytes.resize(bytes.len().next_multiple_of(BLOCK_BYTES as usize), 0);
    bytes
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
pub mod tests {
    use std::io::{Read, Write};

    use super::*;

    /// An archive of these files; a content that starts with `->` is a link.
    pub fn tar_of(files: &[(&str, &str)]) -> File {
        let mut builder = tar::Builder::new(tempfile::tempfile().unwrap());
        for (path, content) in files {
            let mut header = tar::Header::new_gnu();
            if let Some(target) = content.strip_prefix("->") {
                header.set_entry_type(tar::EntryType::Symlink);
                header.set_size(0);
                builder.append_link(&mut header, path, target).unwrap();
            } else {
                header.set_size(content.len() as u64);
                header.set_mode(0o644);
                builder.append_data(&mut header, path, content.as_bytes()).unwrap();
            }
        }
        let mut file = builder.into_inner().unwrap();
        file.flush().unwrap();
        file
    }

    pub fn config(diff_ids: &[&str]) -> String {
        serde_json::json!({"rootfs": {"type": "layers", "diff_ids": diff_ids}}).to_string()
    }

    fn long(path: &str) -> String {
        format!("{}/{path}", "0123456789abcdef".repeat(8))
    }

    /// Two images that share a layer, the second by a link, as Docker 20.10 writes it.
    fn two() -> Archive {
        let (one, linked) = (long("layer.tar"), long("b/layer.tar"));
        let link = "->../layer.tar";
        let manifest = serde_json::json!([
            {"Config": "a.json", "RepoTags": ["web:v1"], "Layers": [one, "x/layer.tar"]},
            {"Config": "b.json", "RepoTags": null, "Layers": [linked, "y/layer.tar"]},
        ]);
        let file = tar_of(&[
            ("a.json", &config(&["sha256:base", "sha256:x"])),
            ("b.json", &config(&["sha256:base", "sha256:y"])),
            (&one, &"base".repeat(300)),
            (&linked, link),
            ("x/layer.tar", "x"),
            ("x/VERSION", "1.0"),
            ("y/layer.tar", "y"),
            ("manifest.json", &manifest.to_string()),
            ("repositories", "{}"),
        ]);
        Archive::scan(file, "two.tar").unwrap()
    }

    fn sent(archive: &Archive, index: usize, wanted: &[&str]) -> Vec<String> {
        let wanted = wanted.iter().map(|id| (*id).to_owned()).collect();
        let mut bytes = Vec::new();
        for piece in archive.pieces(&archive.images[index], &wanted) {
            match piece {
                Piece::Bytes(part) => bytes.extend(part),
                Piece::Range { start, length } => {
                    let mut part = vec![0; length as usize];
                    archive.read_at(start, &mut part).unwrap();
                    bytes.extend(part);
                }
            }
        }
        assert_eq!(bytes.len() % 512, 0);
        let mut files = Vec::new();
        for entry in tar::Archive::new(bytes.as_slice()).entries().unwrap() {
            let mut entry = entry.unwrap();
            let path = entry.path().unwrap().display().to_string();
            let mut content = String::new();
            entry.read_to_string(&mut content).unwrap();
            let shown =
                if content.len() < 20 { content } else { format!("{} bytes", content.len()) };
            files.push(format!("{} {shown}", path.replace(&long("")[..128], "L")));
        }
        files
    }

    #[test]
    fn images_are_read_from_their_manifests() {
        let archive = two();
        assert_eq!(archive.images[0].references, ["web:v1"]);
        assert_eq!(archive.images[1].references, Vec::<String>::new());
        assert_eq!(archive.images[1].diff_ids, ["sha256:base", "sha256:y"]);
        let digest = Sha256::digest(config(&["sha256:base", "sha256:x"]));
        assert_eq!(archive.images[0].id, format!("sha256:{}", hex(&digest)));
    }

    #[test]
    fn only_wanted_layers_of_one_image_are_sent() {
        let archive = two();
        let of_first = sent(&archive, 0, &["sha256:x"]);
        assert!(of_first[0].starts_with("manifest.json "), "{of_first:?}");
        assert_eq!(
            of_first[1..].iter().map(|f| f.split(' ').next().unwrap()).collect::<Vec<_>>(),
            ["a.json", "b.json", "x/layer.tar", "x/VERSION"]
        );
        let of_second = sent(&archive, 1, &["sha256:base", "sha256:y"]);
        for file in ["L/layer.tar 1200 bytes", "L/b/layer.tar ", "y/layer.tar y"] {
            assert!(of_second.iter().any(|found| found == file), "{file}: {of_second:?}");
        }
        assert!(!of_second.iter().any(|file| file.starts_with("x/layer.tar")));
    }

    #[test]
    fn of_one_image_the_archive_stays_as_it_is() {
        let manifest = r#"[{"Config":"a.json","RepoTags":["w:1"],"Layers":["l.tar"]}]"#;
        let files =
            [("a.json", config(&["d"])), ("l.tar", "L".into()), ("manifest.json", manifest.into())];
        let files: Vec<(&str, &str)> = files.iter().map(|(p, c)| (*p, c.as_str())).collect();
        let archive = Archive::scan(tar_of(&files), "one.tar").unwrap();
        let whole = BTreeSet::from(["d".to_owned()]);
        let pieces = archive.pieces(&archive.images[0], &whole);
        assert_eq!(pieces.len(), 2, "one range and the end: {pieces:?}");
        assert_eq!(sent(&archive, 0, &[])[0].split(' ').next(), Some("a.json"));
        assert_eq!(sent(&archive, 0, &[]).len(), 2);
    }

    #[test]
    fn what_is_no_such_archive_is_told() {
        let told = |file| Archive::scan(file, "x.tar").unwrap_err().to_string();
        assert!(told(tar_of(&[("a", "b")])).contains("x.tar: it has no manifest.json\nhint:"));
        let missing = r#"[{"Config":"a.json","Layers":[]}]"#;
        assert!(told(tar_of(&[(MANIFEST, missing)])).contains("it has no a.json"));
        let mut text = tempfile::tempfile().unwrap();
        text.write_all(&[b'x'; 2000]).unwrap();
        assert!(told(text).contains("read image archive x.tar"));
    }
}
