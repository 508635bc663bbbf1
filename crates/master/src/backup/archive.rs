//! The file of a backup: a plain tar archive, its manifest first. Only what this program writes is taken.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use rpicluster_protocol::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tar::{Archive, Builder, EntryType, Header};

use super::BackupError;
use crate::VERSION;
use crate::certificates::{CA_FILE, CA_KEY_FILE};
use crate::store::STORE_FILE;

/// The form that this program writes and reads.
const FORMAT: u32 = 1;
const MANIFEST_FILE: &str = "manifest.json";
/// Far more than the manifest of [`FORMAT`] can have.
const MANIFEST_BYTES_MAX: u64 = 64 * 1024;
/// What may be in a backup beside the manifest, and the most bytes of each: a hostile file must not fill the disk.
/// 10,000 slaves with all their details are less than a tenth of that store.
const FILES: [(&str, u64); 3] = [(STORE_FILE, 1 << 30), (CA_FILE, 1 << 20), (CA_KEY_FILE, 1 << 20)];

/// What a backup says of itself.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Manifest {
    format: u32,
    /// The version of the program that made it.
    program: String,
    pub(super) created: Timestamp,
    files: BTreeMap<String, Described>,
}

/// A file in a backup.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Described {
    bytes: u64,
    /// In hexadecimal digits.
    sha256: String,
}

impl Manifest {
    /// Whether the state has a certificate authority.
    pub(super) fn has_authority(&self) -> bool {
        self.files.contains_key(CA_KEY_FILE)
    }

    /// The manifest in its text.
    fn read(text: &[u8]) -> Result<Manifest, String> {
        #[derive(Deserialize)]
        struct Form {
            format: u32,
        }
        let wrong = |error: serde_json::Error| format!("{MANIFEST_FILE}: {error}");
        let form: Form = serde_json::from_slice(text).map_err(wrong)?;
        if form.format != FORMAT {
            let format = form.format;
            return Err(format!("it has form {format}, this program knows {FORMAT}: use the rpicluster that made it"));
        }
        let manifest: Manifest = serde_json::from_slice(text).map_err(wrong)?;
        for (name, described) in &manifest.files {
            let limit = FILES.iter().find(|(known, _)| known == name).map(|(_, limit)| *limit);
            let limit = limit.ok_or_else(|| format!("{MANIFEST_FILE} lists {name:?}, which is no part of a backup"))?;
            if described.bytes > limit {
                return Err(format!("{name} has more than {limit} bytes"));
            }
        }
        let has = |name: &str| manifest.files.contains_key(name);
        if !has(STORE_FILE) || has(CA_FILE) != has(CA_KEY_FILE) {
            return Err(format!("{MANIFEST_FILE} leaves out a file that belongs to a backup"));
        }
        Ok(manifest)
    }
}

/// Writes these files of a folder, made at that time.
pub(super) fn write(out: &mut File, folder: &Path, files: &[&str], created: Timestamp) -> io::Result<()> {
    let mut described = BTreeMap::new();
    for name in files {
        let (bytes, sha256) = copy(&mut File::open(folder.join(name))?, &mut io::sink())?;
        described.insert((*name).to_owned(), Described { bytes, sha256 });
    }
    let manifest = Manifest { format: FORMAT, program: VERSION.to_owned(), created, files: described };
    let text = serde_json::to_vec_pretty(&manifest)?;
    let mut tar = Builder::new(BufWriter::new(out));
    let seconds = created.unix_ms() / 1_000;
    tar.append_data(&mut header(text.len() as u64, seconds), MANIFEST_FILE, &text[..])?;
    for (name, described) in &manifest.files {
        tar.append_data(&mut header(described.bytes, seconds), name, File::open(folder.join(name))?)?;
    }
    tar.into_inner()?.flush()
}

fn header(bytes: u64, seconds: u64) -> Header {
    let mut header = Header::new_ustar();
    header.set_entry_type(EntryType::Regular);
    header.set_mode(0o600);
    header.set_size(bytes);
    header.set_mtime(seconds);
    header
}

/// Reads a whole backup and compares it with its manifest.
///
/// # Errors
/// If it is none, or damaged.
pub(super) fn check(path: &Path) -> Result<Manifest, BackupError> {
    read(path, |_| Ok(Box::new(io::sink())))
}

/// The same, writing its files into a folder, each for its owner alone.
///
/// # Errors
/// As [`check`], or if a file cannot be written.
pub(super) fn unpack(path: &Path, folder: &Path) -> Result<Manifest, BackupError> {
    read(path, |name| {
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(folder.join(name))?;
        Ok(Box::new(file))
    })
}

fn read(
    path: &Path,
    mut sink: impl FnMut(&'static str) -> io::Result<Box<dyn Write>>,
) -> Result<Manifest, BackupError> {
    let refused = |problem| BackupError::Archive { path: path.to_owned(), problem };
    let unreadable = |cause| BackupError::Io { action: "read", path: path.to_owned(), cause };
    let file = File::open(path).map_err(unreadable)?;
    if !file.metadata().map_err(unreadable)?.is_file() {
        return Err(refused("it is no file".to_owned()));
    }
    let mut archive = Archive::new(BufReader::new(file));
    // The archive's reader repeats in its errors what the file holds, which may be anything.
    let broken = |error: io::Error| match error.raw_os_error() {
        Some(_) => error.to_string(),
        None => "it is no backup, or damaged, or cut short".to_owned(),
    };
    // Raw: extensions of tar, by which an entry can be anything, are entries that nobody expects.
    let entries = archive.entries().map_err(broken).map_err(refused)?.raw(true);
    let mut manifest: Option<Manifest> = None;
    let mut seen = BTreeSet::new();
    for entry in entries {
        let mut entry = entry.map_err(broken).map_err(refused)?;
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        if entry.header().entry_type() != EntryType::Regular {
            return Err(refused(format!("{name:?} in it is no plain file")));
        }
        let Some(manifest) = &manifest else {
            if name != MANIFEST_FILE || entry.size() > MANIFEST_BYTES_MAX {
                return Err(refused(format!("it begins with {name:?}, and a backup with its {MANIFEST_FILE}")));
            }
            let mut text = Vec::new();
            entry.read_to_end(&mut text).map_err(broken).map_err(refused)?;
            manifest = Some(Manifest::read(&text).map_err(refused)?);
            continue;
        };
        let known = FILES.iter().find(|(known, _)| *known == name).zip(manifest.files.get(&name));
        let Some(((known, _), described)) = known.filter(|_| seen.insert(name.clone())) else {
            return Err(refused(format!("{name:?} is not what its {MANIFEST_FILE} lists")));
        };
        if entry.size() != described.bytes {
            return Err(refused(format!("{name} has another length than its {MANIFEST_FILE} says")));
        }
        let mut out =
            sink(known).map_err(|cause| BackupError::Io { action: "unpack", path: path.to_owned(), cause })?;
        let (bytes, sha256) = copy(&mut entry, &mut out).map_err(broken).map_err(refused)?;
        if bytes < described.bytes {
            return Err(refused(format!("it is cut short: of {name} there are {bytes} of {} bytes", described.bytes)));
        }
        if sha256 != described.sha256 {
            return Err(refused(format!("{name} in it is damaged")));
        }
    }
    let manifest = manifest.ok_or_else(|| refused("it is empty".to_owned()))?;
    match manifest.files.keys().find(|name| !seen.contains(*name)) {
        Some(name) => Err(refused(format!("{name} is missing in it: it is damaged, or cut short"))),
        None => Ok(manifest),
    }
}

/// Copies everything; its length and SHA-256.
fn copy(from: &mut impl Read, to: &mut impl Write) -> io::Result<(u64, String)> {
    let mut buffer = vec![0; 64 * 1024];
    let (mut bytes, mut hasher) = (0, Sha256::new());
    loop {
        let count = from.read(&mut buffer)?;
        if count == 0 {
            break;
        }
        to.write_all(&buffer[..count])?;
        hasher.update(&buffer[..count]);
        bytes += count as u64;
    }
    let hash = hasher.finalize().iter().fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    });
    Ok((bytes, hash))
}
