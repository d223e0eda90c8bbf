//! Volumes: directories of apps that outlive every container. Nothing here ever removes one.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::PathBuf;

use model::Name;

/// What a volume belongs to. Another app's volume of the same name is another volume.
const OWNERS: [&str; 3] = ["project", "app", "workspace"];

/// The volumes of one cell.
#[derive(Debug)]
pub(crate) struct Volumes(PathBuf);

impl Volumes {
    pub(crate) const fn new(dir: PathBuf) -> Self {
        Self(dir)
    }

    /// The directory of a volume, made when it is not there yet. No name holds a dot.
    pub(crate) fn open(
        &self,
        labels: &HashMap<String, String>,
        name: &Name,
    ) -> io::Result<PathBuf> {
        let owner = |label: &str| labels.get(label).map_or("_", String::as_str).to_owned();
        let mut id = OWNERS.map(owner).join(".");
        id.push('.');
        id.push_str(name.as_str());
        if id.contains('/') {
            return Err(io::Error::other("the name of its app is no name"));
        }
        let dir = self.0.join(id);
        fs::create_dir_all(&dir)?;
        fs::canonicalize(&dir)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_app_has_its_own() {
        let dir = tempfile::tempdir().expect("makes a directory");
        let volumes = Volumes::new(dir.path().join("volumes"));
        let labels = |app: &str| {
            let labels = [("project", "acme"), ("app", app), ("workspace", "default")];
            labels.map(|(name, value)| (name.to_owned(), value.to_owned())).into()
        };
        let name: Name = "data".parse().expect("a name");
        let first = volumes.open(&labels("shop"), &name).expect("opens");
        assert!(first.ends_with("acme.shop.default.data"));
        assert_eq!(volumes.open(&labels("shop"), &name).expect("opens again"), first);
        assert_ne!(volumes.open(&labels("blog"), &name).expect("opens"), first);
        assert!(volumes.open(&HashMap::new(), &name).expect("opens").ends_with("_._._.data"));
        assert!(volumes.open(&labels("../x"), &name).is_err());
    }
}
