//! A zip archive read in place, and files mistaken for one.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use zip::{CompressionMethod, ZipArchive};

use super::entry::{ContentPlace, Entry, UnpackObstacle};
use super::names;
use super::walk::Obstructed;
use crate::{Error, Result};

/// The end of an archive, with its longest comment, is not longer.
const END_BYTES: u64 = 22 + 65535;

/// Opens an archive. The error names a file that is none, an incomplete one, and one in several parts.
pub(super) fn open(path: &Path) -> Result<ZipArchive<SharedFile>> {
    let failed = |e| Error::io("open", path, e);
    let file = File::open(path).map_err(failed)?;
    let length = file.metadata().map_err(failed)?.len();
    let read = |from: u64, most: u64| {
        let mut bytes = vec![0; most.min(length - from) as usize];
        file.read_exact_at(&mut bytes, from).map(|()| bytes)
    };
    let head = read(0, 1024).map_err(failed)?;
    let tail = read(length.saturating_sub(END_BYTES), END_BYTES).map_err(failed)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    if let Some((problem, help)) =
        no_zip(&head, &name).or_else(|| no_whole_zip(&head, &tail, &name))
    {
        return Err(Error::Layout {
            path: path.to_owned(),
            problem,
            help,
        });
    }
    let shared = SharedFile {
        file: Arc::new(file),
        position: 0,
        length,
    };
    let archive = ZipArchive::new(shared).map_err(|e| zip_error(path, &e))?;
    match same_names(&tail, archive.len()) {
        0 => Ok(archive),
        count => Err(Error::Layout {
            path: path.to_owned(),
            problem: format!(
                "holds {} with the very name of another",
                names::counted(count, "file")
            ),
            help: format!(
                "`unzip -o {name}` keeps the last of each name: look at what comes out, and give that folder"
            ),
        }),
    }
}

/// How many files of an archive with this end have the name of another one, of which `named` have a name of their own.
/// Archives of more than 65,534 files keep their number elsewhere and are not looked at.
fn same_names(tail: &[u8], named: usize) -> usize {
    let end = tail.windows(4).rposition(|window| window == b"PK\x05\x06");
    let listed = end
        .and_then(|end| tail.get(end + 10..end + 12))
        .map_or(0, |bytes| u16::from_le_bytes([bytes[0], bytes[1]]));
    match listed {
        u16::MAX => 0,
        listed => usize::from(listed).saturating_sub(named),
    }
}

/// What is no zip though it is given as one: problem and help.
fn no_zip(head: &[u8], name: &str) -> Option<(String, String)> {
    let told = |what: &str, help: String| Some((format!("is {what}, not a zip archive"), help));
    let unpack = |what: &str, command: &str| {
        let help = format!("unpack it with `{command} {name}`, and give the folder that comes out");
        told(what, help)
    };
    let lower = name.to_lowercase();
    let packed_tar = |what: &str, tar: &str, alone: &str| {
        let is_tar = lower.contains(".tar")
            || lower.ends_with(".tgz")
            || lower.ends_with(".tbz2")
            || lower.ends_with(".txz");
        if is_tar || !lower.ends_with(alone) {
            unpack(&format!("a tar archive packed by {what} ({tar})"), "tar xf")
        } else {
            unpack(&format!("packed by {what} ({alone})"), "7z x")
        }
    };
    match head {
        [] => {
            return Some((
                "is empty".to_owned(),
                "copy or download it again".to_owned(),
            ));
        }
        [b'P', b'K', ..] => return None,
        [0x1f, 0x8b, ..] => return packed_tar("gzip", ".tar.gz", ".gz"),
        [b'B', b'Z', b'h', b'1'..=b'9', ..] => return packed_tar("bzip2", ".tar.bz2", ".bz2"),
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => return packed_tar("xz", ".tar.xz", ".xz"),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => return packed_tar("Zstandard", ".tar.zst", ".zst"),
        [b'7', b'z', 0xbc, 0xaf, 0x27, 0x1c, ..] => return unpack("a 7-Zip archive (.7z)", "7z x"),
        [b'R', b'a', b'r', b'!', 0x1a, 0x07, ..] => {
            return unpack("a RAR archive (.rar)", "unrar x");
        }
        _ => {}
    }
    if is_tar(head) {
        return unpack("a tar archive (.tar)", "tar xf");
    }
    let text = head
        .strip_prefix(b"\xef\xbb\xbf")
        .unwrap_or(head)
        .trim_ascii_start();
    let begins =
        |start: &[u8]| text.len() >= start.len() && text[..start.len()].eq_ignore_ascii_case(start);
    if begins(b"<!doctype html") || begins(b"<html") || begins(b"<head") || begins(b"<!--") {
        return told(
            "a web page (HTML)",
            "the download gave a page, as for signing in, in place of the file: open the address in a browser, and download the file from there".to_owned(),
        );
    }
    if begins(b"<?xml") || begins(b"{\"") {
        return told(
            "a text of XML or JSON, as servers answer with when they refuse",
            "look into it for the reason, and download the file again".to_owned(),
        );
    }
    if begins(b"version https://git-lfs") {
        return told(
            "a Git LFS pointer",
            "`git lfs pull` in its repository fetches the file itself".to_owned(),
        );
    }
    match fovea_pictures::decode::sniff(head) {
        fovea_pictures::decode::Content::Picture(_) => told(
            "a picture",
            "give the folder that holds images and masks; `fovea predict` and `fovea data --mosaic` take single photographs".to_owned(),
        ),
        fovea_pictures::decode::Content::Other { what, help } => told(what, help.to_owned()),
        fovea_pictures::decode::Content::Unknown => None,
    }
}

/// Whether the first block of 512 bytes is a header of tar: its checksum is right.
fn is_tar(head: &[u8]) -> bool {
    let Some(block) = head.get(..512) else {
        return false;
    };
    let stated = std::str::from_utf8(&block[148..156])
        .ok()
        .and_then(|field| {
            let digits = field.trim_matches(|c| c == ' ' || c == '\0');
            u32::from_str_radix(digits, 8).ok()
        });
    let sum: u32 = block
        .iter()
        .enumerate()
        .map(|(i, byte)| {
            if (148..156).contains(&i) {
                32
            } else {
                u32::from(*byte)
            }
        })
        .sum();
    stated == Some(sum) && block[0] != 0
}

/// A zip that is cut off, or one part of several: problem and help.
fn no_whole_zip(head: &[u8], tail: &[u8], name: &str) -> Option<(String, String)> {
    let part_of_bytes = name
        .rsplit('.')
        .next()
        .is_some_and(|last| last.len() == 3 && last.bytes().all(|b| b.is_ascii_digit()));
    let end = tail.windows(4).rposition(|window| window == b"PK\x05\x06");
    let number = |at: usize| {
        tail.get(at..at + 2)
            .map(|b| u16::from_le_bytes([b[0], b[1]]))
    };
    let disk = end.and_then(|end| number(end + 4)).unwrap_or(0);
    let in_parts = "is one part of a zip archive in several parts".to_owned();
    if disk != 0 && disk != u16::MAX || head.starts_with(b"PK\x07\x08") && end.is_none() {
        let stem = names::stem(name);
        let help = format!(
            "put all parts ({stem}.z01, ..., {stem}.zip) into one folder, join them with `zip -s 0 {stem}.zip --out whole.zip`, and give whole.zip"
        );
        return Some((in_parts, help));
    }
    if end.is_some() || !head.starts_with(b"PK") {
        return None;
    }
    if part_of_bytes {
        let stem = name.rsplit_once('.').map_or(name, |(stem, _)| stem);
        let help =
            format!("join all parts with `cat {stem}.[0-9]* > whole.zip`, and give whole.zip");
        return Some((in_parts, help));
    }
    Some((
        "is an incomplete zip archive: its end, where the list of its files is, is missing"
            .to_owned(),
        "the download or copy broke off: do it again, and compare the length with the source's"
            .to_owned(),
    ))
}

/// The files of an archive, and what cannot be used.
pub(super) fn list(
    path: &Path,
    archive: &mut ZipArchive<SharedFile>,
) -> Result<(Vec<Entry>, Vec<Obstructed>)> {
    let (mut entries, mut obstructed) = (Vec::new(), Vec::new());
    for position in 0..archive.len() {
        let file = archive
            .by_index_raw(position)
            .map_err(|e| zip_error(path, &e))?;
        let name = entry_name(file.name_raw(), file.name());
        if file.is_dir() || name.is_empty() || name.split('/').any(names::is_litter) {
            continue;
        }
        if name.split('/').any(|part| part.starts_with('.')) {
            obstructed.push(Obstructed {
                name,
                reason: "hidden".to_owned(),
                matters: false,
            });
        } else if file.is_symlink() {
            obstructed.push(Obstructed {
                name,
                reason: "a link inside the archive".to_owned(),
                matters: true,
            });
        } else {
            entries.push(Entry {
                name,
                bytes: file.size(),
                stamp: u64::from(file.crc32()),
                place: match lock(file.encrypted(), file.compression()) {
                    Some(lock) => ContentPlace::Locked(lock),
                    None => ContentPlace::Packed(position),
                },
            });
        }
    }
    obstructed.sort_by(|a, b| a.name.cmp(&b.name));
    Ok((entries, obstructed))
}

/// The path of an entry without what leads out of the archive. Names that are valid UTF-8 are taken for that, as most
/// tools write it, also those that do not say so; `decoded` follows the flags and knows code page 437.
fn entry_name(raw: &[u8], decoded: &str) -> String {
    let name = std::str::from_utf8(raw).unwrap_or(decoded);
    let name = name.replace('\\', "/");
    let parts = name
        .split('/')
        .filter(|part| !matches!(*part, "" | "." | ".."));
    parts.collect::<Vec<_>>().join("/")
}

#[expect(deprecated, reason = "the only way to the number of an unknown method")]
fn lock(encrypted: bool, method: CompressionMethod) -> Option<UnpackObstacle> {
    match method {
        _ if encrypted => Some(UnpackObstacle::Encrypted),
        CompressionMethod::Unsupported(number) => Some(UnpackObstacle::Method(number)),
        _ => None,
    }
}

/// Why an entry cannot be read.
pub(super) fn locked(lock: UnpackObstacle) -> String {
    match lock {
        UnpackObstacle::Encrypted => "is encrypted".to_owned(),
        UnpackObstacle::Method(number) => format!("is packed by {}", method_name(number)),
    }
}

fn method_name(number: u16) -> String {
    let name = match number {
        1 => "Shrink",
        2..=5 => "Reduce",
        6 => "Implode",
        10 => "PKWARE's DCL",
        14 => "LZMA",
        20 | 93 => "Zstandard",
        94 => "MP3",
        95 => "XZ",
        96 => "a variant of JPEG",
        97 => "WavPack",
        98 => "PPMd",
        99 => "AES",
        _ => return format!("an unknown method ({number})"),
    };
    format!("{name} (method {number})")
}

/// Refuses an archive of which files that are wanted cannot be unpacked, for all of them at once.
pub(super) fn refuse_locked<'a>(
    path: &Path,
    wanted: impl Iterator<Item = &'a Entry>,
) -> Result<()> {
    let mut total = 0;
    let mut locked_files: Vec<(UnpackObstacle, &str)> = Vec::new();
    for entry in wanted {
        total += 1;
        if let ContentPlace::Locked(lock) = entry.place {
            locked_files.push((lock, &entry.name));
        }
    }
    let Some(&(first, example)) = locked_files.iter().min() else {
        return Ok(());
    };
    let count = locked_files
        .iter()
        .filter(|(lock, _)| *lock == first)
        .count();
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let (problem, command) = match first {
        UnpackObstacle::Encrypted => ("encrypted".to_owned(), "asks for the password"),
        UnpackObstacle::Method(number) => (
            format!(
                "packed by {}, which fovea does not unpack",
                method_name(number)
            ),
            "knows it",
        ),
    };
    Err(Error::Layout {
        path: path.to_owned(),
        problem: format!("{count} of its {total} pictures are {problem} ({example})"),
        help: format!(
            "unpack it with `7z x {name}`, which {command}, and give the folder that comes out"
        ),
    })
}

fn zip_error(path: &Path, error: &zip::result::ZipError) -> Error {
    Error::Zip {
        path: path.to_owned(),
        reason: error.to_string(),
    }
}

/// A file read at positions of its own, so that threads share one descriptor without a lock.
#[derive(Clone)]
pub(super) struct SharedFile {
    file: Arc<File>,
    position: u64,
    length: u64,
}

impl Read for SharedFile {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read_at(out, self.position)?;
        self.position += read as u64;
        Ok(read)
    }
}

impl Seek for SharedFile {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let target = match to {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::Current(by) => self.position.checked_add_signed(by),
            SeekFrom::End(by) => self.length.checked_add_signed(by),
        };
        self.position = target.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        Ok(self.position)
    }
}
