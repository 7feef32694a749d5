//! The static init that starts a container's program once its network is there. The program is
//! built by this crate's build script from `init/init.rs` and carried within the agent.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::NetError;

/// Where the agent binds the init into containers, read-only.
pub const INIT_PATH_IN_CONTAINER: &str = "/.timonier-init";

const FILE_NAME: &str = "timonier-init";

/// The init's program file.
pub fn init_bytes() -> &'static [u8] {
    include_bytes!(concat!(env!("OUT_DIR"), "/timonier-init"))
}

/// Writes the init to `<data_dir>/bin/timonier-init` for all to execute, unless it is there; its
/// path. The file is replaced by another, never rewritten: containers may be running it.
pub fn install_init(data_dir: &Path) -> Result<PathBuf, NetError> {
    let dir = data_dir.join("bin");
    let path = dir.join(FILE_NAME);
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| NetError::File { path, source }
    };
    let mode = |path: &Path| fs::metadata(path).map(|meta| meta.permissions().mode() & 0o777);
    if mode(&path).is_ok_and(|mode| mode == 0o755)
        && fs::read(&path).is_ok_and(|found| found == init_bytes())
    {
        return Ok(path);
    }
    fs::create_dir_all(&dir).map_err(failed(&dir))?;
    let new = dir.join(format!("{FILE_NAME}.{}", std::process::id()));
    fs::write(&new, init_bytes()).map_err(failed(&new))?;
    fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).map_err(failed(&new))?;
    fs::rename(&new, &path).map_err(failed(&path))?;
    Ok(path)
}
