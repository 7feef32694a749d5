//! Which files a volume shows: of config maps, secrets, the pod's own fields, or several of these.
//! Pure; writing them is [`super::files`]'. An error never quotes a content.

use k8s_openapi::api::core::v1::{
    ConfigMap, ConfigMapVolumeSource, DownwardAPIVolumeFile, KeyToPath, ProjectedVolumeSource,
    Secret, SecretVolumeSource, ServiceAccountTokenProjection, VolumeProjection,
};
use timonier_proto::compiled::{CompiledPod, token_key};

use super::files::Files;
use super::{VolumeError, inside};
use crate::pods::{NodeFacts, downward};

const MODE_DEFAULT: i32 = 0o644;

/// A volume, and what is known of the pod that has it.
pub(super) struct Source<'a> {
    pub volume: &'a str,
    pub compiled: &'a CompiledPod,
    pub facts: &'a NodeFacts,
}

/// An object with keys, and which of them are wanted.
struct Keyed<'a> {
    what: &'static str,
    name: &'a str,
    items: Option<&'a [KeyToPath]>,
    mode: Option<i32>,
    optional: bool,
}

type Content = Vec<(String, Vec<u8>)>;

impl Source<'_> {
    pub fn config_map(&self, source: &ConfigMapVolumeSource) -> Result<Files, VolumeError> {
        let keyed = Keyed {
            what: CONFIG_MAP,
            name: &source.name,
            items: source.items.as_deref(),
            mode: source.default_mode,
            optional: source.optional == Some(true),
        };
        self.keyed(&keyed, self.config_map_content(&source.name))
    }

    pub fn secret(&self, source: &SecretVolumeSource) -> Result<Files, VolumeError> {
        let name = source.secret_name.as_deref().unwrap_or_default();
        let keyed = Keyed {
            what: SECRET,
            name,
            items: source.items.as_deref(),
            mode: source.default_mode,
            optional: source.optional == Some(true),
        };
        self.keyed(&keyed, self.secret_content(name))
    }

    pub fn projected(&self, source: &ProjectedVolumeSource) -> Result<Files, VolumeError> {
        let mut files = Files::new();
        for one in source.sources.iter().flatten() {
            files.extend(self.projection(one, source.default_mode)?);
        }
        Ok(files)
    }

    fn projection(
        &self,
        source: &VolumeProjection,
        mode: Option<i32>,
    ) -> Result<Files, VolumeError> {
        if let Some(secret) = &source.secret {
            let (name, items) = (secret.name.as_str(), secret.items.as_deref());
            let optional = secret.optional == Some(true);
            let keyed = Keyed { what: SECRET, name, items, mode, optional };
            return self.keyed(&keyed, self.secret_content(name));
        }
        if let Some(map) = &source.config_map {
            let (name, items) = (map.name.as_str(), map.items.as_deref());
            let optional = map.optional == Some(true);
            let keyed = Keyed { what: CONFIG_MAP, name, items, mode, optional };
            return self.keyed(&keyed, self.config_map_content(name));
        }
        if let Some(token) = &source.service_account_token {
            return self.token(token, mode);
        }
        if let Some(downward) = &source.downward_api {
            return self.downward(downward.items.as_deref().unwrap_or_default(), mode);
        }
        Err(VolumeError::Unsupported { volume: self.volume.to_owned() })
    }

    pub fn downward(
        &self,
        items: &[DownwardAPIVolumeFile],
        mode: Option<i32>,
    ) -> Result<Files, VolumeError> {
        let mut files = Files::new();
        for item in items {
            let text = downward(&self.compiled.pod, item, self.facts).map_err(|why| {
                let (volume, path) = (self.volume.to_owned(), item.path.clone());
                VolumeError::Downward { volume, path, why }
            })?;
            self.add(&mut files, &item.path, text.into_bytes(), item.mode.or(mode))?;
        }
        Ok(files)
    }

    fn token(
        &self,
        token: &ServiceAccountTokenProjection,
        mode: Option<i32>,
    ) -> Result<Files, VolumeError> {
        let text = self.compiled.tokens.get(&token_key(token));
        let text = text.ok_or_else(|| VolumeError::NoToken { volume: self.volume.to_owned() })?;
        let mut files = Files::new();
        self.add(&mut files, &token.path, text.clone().into_bytes(), mode)?;
        Ok(files)
    }

    fn config_map_content(&self, name: &str) -> Option<Content> {
        self.compiled.config_maps.get(name)?.as_ref().map(content_of_map)
    }

    fn secret_content(&self, name: &str) -> Option<Content> {
        self.compiled.secrets.get(name)?.as_ref().map(content_of_secret)
    }

    fn keyed(&self, keyed: &Keyed<'_>, content: Option<Content>) -> Result<Files, VolumeError> {
        let (volume, what, name) = (self.volume.to_owned(), keyed.what, keyed.name.to_owned());
        let mut files = Files::new();
        let Some(content) = content else {
            let missing = VolumeError::NotFound { volume, what, name };
            return if keyed.optional { Ok(files) } else { Err(missing) };
        };
        let Some(items) = keyed.items else {
            for (key, bytes) in content {
                self.add(&mut files, &key, bytes, keyed.mode)?;
            }
            return Ok(files);
        };
        for item in items {
            match content.iter().find(|(key, _)| *key == item.key) {
                Some((_, bytes)) => {
                    self.add(&mut files, &item.path, bytes.clone(), item.mode.or(keyed.mode))?;
                }
                None if keyed.optional => {}
                None => {
                    return Err(VolumeError::NoKey { volume, what, name, key: item.key.clone() });
                }
            }
        }
        Ok(files)
    }

    fn add(
        &self,
        files: &mut Files,
        path: &str,
        content: Vec<u8>,
        mode: Option<i32>,
    ) -> Result<(), VolumeError> {
        // Names that begin so are the volume's own.
        if inside(self.volume, path)?.to_string_lossy().starts_with("..") {
            let (volume, path) = (self.volume.to_owned(), path.to_owned());
            return Err(VolumeError::Outside { volume, path });
        }
        let mode = mode.unwrap_or(MODE_DEFAULT).unsigned_abs() & 0o777;
        files.insert(path.to_owned(), (content, mode));
        Ok(())
    }
}

const CONFIG_MAP: &str = "config map";
const SECRET: &str = "secret";

fn content_of_map(map: &ConfigMap) -> Content {
    let texts = map.data.iter().flatten();
    let texts = texts.map(|(key, text)| (key.clone(), text.clone().into_bytes()));
    let binary = map.binary_data.iter().flatten();
    texts.chain(binary.map(|(key, value)| (key.clone(), value.0.clone()))).collect()
}

fn content_of_secret(secret: &Secret) -> Content {
    let data = secret.data.iter().flatten();
    data.map(|(key, value)| (key.clone(), value.0.clone())).collect()
}
