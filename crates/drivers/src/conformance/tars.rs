//! Archives, good and bad.

use std::io;

use tar::{Builder, EntryType, Header};

/// Builds an archive entry by entry; names and links are taken as they are.
pub(super) struct Tar(Builder<Vec<u8>>);

impl Tar {
    pub(super) fn new() -> Self {
        Self(Builder::new(Vec::new()))
    }

    /// Adds an entry whose name no library would write.
    pub(super) fn raw(
        mut self,
        kind: EntryType,
        (name, link): (&str, &str),
        mode: u32,
        data: &[u8],
    ) -> io::Result<Self> {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(data.len() as u64);
        header.set_mode(mode);
        header.set_mtime(1_000_000_000);
        fill(&mut header.as_old_mut().name, name);
        fill(&mut header.as_old_mut().linkname, link);
        header.set_cksum();
        self.0.append(&header, data)?;
        Ok(self)
    }

    pub(super) fn file(self, name: &str, data: &[u8]) -> io::Result<Self> {
        self.raw(EntryType::Regular, (name, ""), 0o644, data)
    }

    pub(super) fn symlink(self, name: &str, target: &str) -> io::Result<Self> {
        self.raw(EntryType::Symlink, (name, target), 0o777, b"")
    }

    pub(super) fn done(self) -> io::Result<Vec<u8>> {
        self.0.into_inner()
    }
}

fn fill(field: &mut [u8], text: &str) {
    for (to, from) in field.iter_mut().zip(text.bytes()) {
        *to = from;
    }
}

/// One entry: name, kind, mode, and data or link.
pub(super) type Content = (String, EntryType, u32, Vec<u8>);

/// What an archive contains, in its order.
pub(super) fn contents(tar: &[u8]) -> io::Result<Vec<Content>> {
    let mut found = Vec::new();
    for entry in tar::Archive::new(tar).entries()? {
        let mut entry = entry?;
        let name = entry.path()?.display().to_string();
        let kind = entry.header().entry_type();
        let mode = entry.header().mode()?;
        let mut data = Vec::new();
        io::Read::read_to_end(&mut entry, &mut data)?;
        if let Some(link) = entry.link_name()? {
            data = link.display().to_string().into_bytes();
        }
        found.push((name.trim_end_matches('/').to_owned(), kind, mode, data));
    }
    Ok(found)
}
