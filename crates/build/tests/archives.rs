//! Archives that try to get out, and layers that are not what they say.

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use build::image::{ImageError, LayerStore, Limits, unpack};
use model::Digest;
use tar::{Builder, EntryType, Header};

/// One entry, with a name that is not checked.
fn entry(builder: &mut Builder<Vec<u8>>, name: &str, kind: EntryType, content: &str) {
    let mut header = Header::new_gnu();
    header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
    header.set_entry_type(kind);
    header.set_mode(0o6755);
    let data = if kind == EntryType::Regular { content } else { "" };
    if kind == EntryType::Symlink || kind == EntryType::Link {
        header.as_mut_bytes()[157..157 + content.len()].copy_from_slice(content.as_bytes());
    }
    header.set_size(data.len() as u64);
    header.set_cksum();
    builder.append(&header, data.as_bytes()).expect("written");
}

fn archive(entries: &[(&str, EntryType, &str)]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for (name, kind, content) in entries {
        entry(&mut builder, name, *kind, content);
    }
    builder.into_inner().expect("written")
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(bytes).expect("written");
    gzip.finish().expect("written")
}

fn try_unpack(bytes: &[u8], dir: &Path) -> Result<(), ImageError> {
    unpack(bytes, dir, Limits { bytes: 1 << 20, entries: 50 }).map(|_| ())
}

#[test]
fn nothing_gets_out() {
    use EntryType::{Block, Char, Fifo, Link, Regular, Symlink};
    let attacks: [&[(&str, EntryType, &str)]; 10] = [
        &[("../out", Regular, "x")],
        &[("/tmp/longshore-out", Regular, "x")],
        &[("a/../../out", Regular, "x")],
        &[("l", Symlink, ".."), ("l/out", Regular, "x")],
        &[("l", Symlink, "/tmp"), ("l/longshore-out", Regular, "x")],
        &[("l", Link, "../victim")],
        &[("s", Symlink, "../victim"), ("l", Link, "s")],
        &[("d", Char, "")],
        &[("d", Block, "")],
        &[("d", Fifo, "")],
    ];
    for attack in attacks {
        for packed in [archive(attack), gzip(&archive(attack))] {
            let outside = tempfile::tempdir().expect("a directory");
            std::fs::write(outside.path().join("victim"), "kept").expect("written");
            let inside = outside.path().join("inside");
            std::fs::create_dir(&inside).expect("made");
            let error = try_unpack(&packed, &inside).expect_err("refused");
            assert!(matches!(error, ImageError::Refused(_)), "{attack:?}: {error}");
            let names = std::fs::read_dir(outside.path()).expect("read").count();
            assert_eq!(names, 2, "{attack:?}");
            assert!(!Path::new("/tmp/longshore-out").exists());
        }
    }
    // A link that is replaced by a file is not written through.
    let dir = tempfile::tempdir().expect("a directory");
    let victim = dir.path().join("victim");
    std::fs::write(&victim, "kept").expect("written");
    let inside = dir.path().join("inside");
    std::fs::create_dir(&inside).expect("made");
    let target = victim.to_str().expect("text");
    try_unpack(&archive(&[("f", Symlink, target), ("f", Regular, "new")]), &inside).expect("fine");
    assert_eq!(std::fs::read_to_string(victim).expect("read"), "kept");
}

#[test]
fn limits_hold_and_special_bits_go() {
    let dir = tempfile::tempdir().expect("a directory");
    let big = "x".repeat((1 << 20) + 1);
    let many: Vec<_> = (0..51).map(|n| format!("f{n}")).collect();
    let many: Vec<_> = many.iter().map(|name| (name.as_str(), EntryType::Regular, "")).collect();
    for packed in [archive(&[("f", EntryType::Regular, &big)]), archive(&many)] {
        assert!(try_unpack(&gzip(&packed), dir.path()).is_err());
    }
    let dir = tempfile::tempdir().expect("a directory");
    try_unpack(&archive(&[("f", EntryType::Regular, "x")]), dir.path()).expect("unpacked");
    let mode = std::fs::metadata(dir.path().join("f")).expect("there").permissions().mode();
    assert_eq!(mode & 0o7777, 0o755);
    for garbage in [&b"garbage"[..], b"\x1f\x8bgarbage", b"\x28\xb5\x2f\xfd...."] {
        assert!(try_unpack(garbage, dir.path()).is_err(), "{garbage:?}");
    }
    let whole = gzip(&archive(&[("g", EntryType::Regular, "some text")]));
    assert!(try_unpack(&whole[..whole.len() / 2], dir.path()).is_err());
}

#[test]
fn the_store_keeps_only_what_has_the_right_digest() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = LayerStore::open(&dir.path().join("store")).expect("opened");
    let blob = gzip(&archive(&[("f", EntryType::Regular, "x")]));
    let digest = Digest::of(&blob);
    let add = |digest: &Digest, bytes: &[u8]| store.add(digest, bytes, Limits::default());
    let wrong = Digest::of(b"something else");
    assert!(matches!(add(&wrong, &blob), Err(ImageError::Digest { .. })));
    let mut longer = blob.clone();
    longer.extend_from_slice(b"trailing");
    assert!(add(&digest, &longer).is_err());
    assert!(store.find(&wrong).is_none() && store.find(&digest).is_none());
    let kept = add(&digest, &blob).expect("kept");
    assert_eq!(std::fs::read(kept.join("f")).expect("read"), b"x");
    assert_eq!(add(&digest, b"not even read").expect("there"), kept);
    let names = std::fs::read_dir(dir.path().join("store")).expect("read").count();
    assert_eq!(names, 2, "the mark and the layer, nothing temporary");
    store.remove(&digest).expect("removed");
    assert!(store.find(&digest).is_none());
}
