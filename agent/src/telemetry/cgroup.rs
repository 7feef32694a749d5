//! Where a process's cgroup is, and what it says, under version 1, version 2 and both at once.
//!
//! Reads only; the cgroups are the runtime's.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// A cgroup's file is not longer; what is after that is not read.
const FILE_BYTES_MAX: u64 = 64 << 10;

/// Where this host has its controllers.
#[derive(Debug, Default)]
pub(super) struct Mounts {
    /// With the names of their controllers.
    v1: Vec<(Vec<String>, Mount)>,
    v2: Option<Mount>,
}

#[derive(Debug, Clone)]
struct Mount {
    point: PathBuf,
    /// The cgroup that is seen at `point`: `/` but in a container.
    root: String,
}

/// The files of one container.
#[derive(Debug)]
pub(super) struct Cgroup {
    cpu: CpuFile,
    memory: Option<MemoryFiles>,
}

#[derive(Debug)]
enum CpuFile {
    /// One number, in nanoseconds.
    Usage(PathBuf),
    /// Lines of names and numbers, with `usage_usec`.
    Stat(PathBuf),
}

#[derive(Debug)]
struct MemoryFiles {
    usage: PathBuf,
    stat: PathBuf,
    inactive: &'static str,
}

impl Mounts {
    pub(super) fn read(proc: &Path) -> Self {
        std::fs::read_to_string(proc.join("self/mountinfo"))
            .map(|text| Self::parse(&text))
            .unwrap_or_default()
    }

    /// A line is `id parent dev root point options [optional…] - type source super-options`.
    fn parse(mountinfo: &str) -> Self {
        let mut mounts = Self::default();
        for line in mountinfo.lines() {
            let Some((left, right)) = line.split_once(" - ") else { continue };
            let mut left = left.split(' ').skip(3);
            let (Some(root), Some(point)) = (left.next(), left.next()) else { continue };
            let mount = Mount { point: point.into(), root: root.to_owned() };
            let mut right = right.split(' ');
            match right.next() {
                Some("cgroup2") if mounts.v2.is_none() => mounts.v2 = Some(mount),
                Some("cgroup") => {
                    let options = right.nth(1).unwrap_or_default();
                    mounts.v1.push((options.split(',').map(str::to_owned).collect(), mount));
                }
                _ => {}
            }
        }
        mounts
    }

    fn v1(&self, controller: &str) -> Option<&Mount> {
        let found = self.v1.iter().find(|(names, _)| names.iter().any(|name| name == controller));
        found.map(|(_, mount)| mount)
    }
}

impl Mount {
    /// The folder of a cgroup; none for one that is outside of what is mounted.
    fn folder(&self, path: &str) -> Option<PathBuf> {
        let inside = match self.root.as_str() {
            "/" => path,
            root => {
                path.strip_prefix(root).filter(|rest| rest.is_empty() || rest.starts_with('/'))?
            }
        };
        let inside = inside.trim_start_matches('/');
        (!inside.split('/').any(|part| part == "..")).then(|| self.point.join(inside))
    }
}

impl Cgroup {
    /// The cgroup of the container `id` whose first process is `pid`; none when the process is
    /// gone, or in a cgroup that tells no CPU time.
    pub(super) fn find(proc: &Path, mounts: &Mounts, id: &str, pid: u32) -> Option<Self> {
        let text = std::fs::read_to_string(proc.join(pid.to_string()).join("cgroup")).ok()?;
        let v1 = |controller: &str| {
            let path = lines(&text).find(|(names, _)| names.split(',').any(|n| n == controller))?.1;
            mounts.v1(controller)?.folder(of_container(path, id))
        };
        let v2 = || {
            let path = lines(&text).find(|(names, _)| names.is_empty())?.1;
            mounts.v2.as_ref()?.folder(of_container(path, id))
        };
        let cpu = match v1("cpuacct") {
            Some(folder) => CpuFile::Usage(folder.join("cpuacct.usage")),
            None => CpuFile::Stat(v2()?.join("cpu.stat")),
        };
        let memory = match v1("memory") {
            Some(folder) => Some(MemoryFiles {
                usage: folder.join("memory.usage_in_bytes"),
                stat: folder.join("memory.stat"),
                inactive: "total_inactive_file",
            }),
            None => v2().map(|folder| MemoryFiles {
                usage: folder.join("memory.current"),
                stat: folder.join("memory.stat"),
                inactive: "inactive_file",
            }),
        };
        Some(Self { cpu, memory })
    }

    /// CPU time since the cgroup was made, in nanoseconds; none when it is gone.
    pub(super) fn cpu_ns(&self, buffer: &mut String) -> Option<u64> {
        match &self.cpu {
            CpuFile::Usage(path) => read(path, buffer)?.trim().parse().ok(),
            CpuFile::Stat(path) => field(read(path, buffer)?, "usage_usec")?.checked_mul(1000),
        }
    }

    /// The working set as Kubernetes counts it: without the page cache that was not used lately.
    pub(super) fn memory_bytes(&self, buffer: &mut String) -> Option<u64> {
        let files = self.memory.as_ref()?;
        let usage: u64 = read(&files.usage, buffer)?.trim().parse().ok()?;
        let inactive = read(&files.stat, buffer).and_then(|text| field(text, files.inactive));
        Some(usage.saturating_sub(inactive.unwrap_or(0)))
    }
}

/// Controllers and path of each line, which is `number:controllers:path`.
fn lines(proc_cgroup: &str) -> impl Iterator<Item = (&str, &str)> {
    proc_cgroup.lines().filter_map(|line| line.split_once(':')?.1.split_once(':'))
}

/// A container may make cgroups within its own: cut off what follows its id.
fn of_container<'a>(path: &'a str, id: &str) -> &'a str {
    let Some(start) = path.find(id).filter(|_| !id.is_empty()) else { return path };
    let rest = &path[start + id.len()..];
    let end = rest.find('/').map_or(path.len(), |at| path.len() - rest.len() + at);
    &path[..end]
}

fn field(stat: &str, name: &str) -> Option<u64> {
    let value = stat.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
    value.trim().parse().ok()
}

fn read<'a>(path: &Path, buffer: &'a mut String) -> Option<&'a str> {
    buffer.clear();
    File::open(path).ok()?.take(FILE_BYTES_MAX).read_to_string(buffer).ok()?;
    Some(buffer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_ends_with_the_containers_id() {
        for (path, id, own) in [
            ("/docker/ab12", "ab12", "/docker/ab12"),
            ("/docker/ab12/init.scope", "ab12", "/docker/ab12"),
            ("/system.slice/docker-ab12.scope", "ab12", "/system.slice/docker-ab12.scope"),
            ("/system.slice/docker-ab12.scope/x/y", "ab12", "/system.slice/docker-ab12.scope"),
            ("/elsewhere/x", "ab12", "/elsewhere/x"),
            ("/x", "", "/x"),
        ] {
            assert_eq!(of_container(path, id), own);
        }
    }

    #[test]
    fn a_mounted_part_hides_the_rest() {
        let mount = |root: &str| Mount { point: "/sys/fs/cgroup".into(), root: root.into() };
        let at = |root: &str, path: &str| mount(root).folder(path);
        assert_eq!(at("/", "/docker/a"), Some("/sys/fs/cgroup/docker/a".into()));
        assert_eq!(at("/docker/a", "/docker/a/b"), Some("/sys/fs/cgroup/b".into()));
        assert_eq!(at("/docker/a", "/docker/ab"), None);
        assert_eq!(at("/", "/../outside"), None);
    }

    #[test]
    fn a_field_is_found_by_its_whole_name() {
        let stat = "total_inactive_file 7\ninactive_file 5\ninactive_file_more 9\n";
        assert_eq!(field(stat, "inactive_file"), Some(5));
        assert_eq!(field(stat, "active_file"), None);
    }
}
