//! Checks the place of a file that the user named for output, before the command does any work that could be lost.

use std::path::{Path, PathBuf};

use crate::exit::Usage;

/// The file to write for `option` (`--out`), with links followed. Refuses directories, devices and pipes, files in
/// folders that do not exist, and a picture below `input`, which would be read and then replaced.
pub fn checked(option: &str, out: &Path, input: &Path) -> Result<PathBuf, Usage> {
    let refuse = |path: &Path, problem: &str, help: &str| {
        Err(Usage(format!(
            "{option} {}: {}: {problem}\n  help: {help}, or choose another {option}",
            out.display(),
            path.display()
        )))
    };
    let target = followed(out);
    let folder = target.parent().filter(|p| !p.as_os_str().is_empty());
    if let Some(folder) = folder.filter(|folder| !folder.is_dir()) {
        return refuse(folder, "there is no such directory", "make it first");
    }
    let Ok(there) = std::fs::metadata(&target) else {
        return Ok(target);
    };
    if there.is_dir() {
        return refuse(&target, "this is a directory", "name a file in it");
    }
    if !there.is_file() {
        return refuse(
            &target,
            "this is a device or a pipe, not a file",
            "name a file",
        );
    }
    let real = |path: &Path| std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let (file, input) = (real(&target), real(input));
    let is_table = file
        .extension()
        .is_some_and(|e| e.eq_ignore_ascii_case("csv"));
    if file == input || (file.starts_with(&input) && !is_table) {
        return refuse(&target, "this is a file of the input", "name a new file");
    }
    Ok(target)
}

/// The final target of a chain of links, even when no file exists there yet.
fn followed(path: &Path) -> PathBuf {
    let mut path = path.to_owned();
    for _ in 0..40 {
        let Ok(next) = std::fs::read_link(&path) else {
            break;
        };
        path = path.parent().unwrap_or(Path::new("")).join(next);
    }
    path
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "in a test a panic is the message")]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn nothing_but_a_file_of_the_users_own_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir(at("photos")).unwrap();
        for name in ["photos/a.png", "old.csv", "photos/old.csv"] {
            fs::write(at(name), b"x").unwrap();
        }
        symlink(at("old.csv"), at("link.csv")).unwrap();
        symlink("new.csv", at("dangling.csv")).unwrap();
        let checked = |out: &Path| checked("--out", out, &at("photos"));
        for (out, target) in [
            ("new.csv", "new.csv"),
            ("old.csv", "old.csv"),
            ("photos/old.csv", "photos/old.csv"),
            ("link.csv", "old.csv"),
            ("dangling.csv", "new.csv"),
        ] {
            assert_eq!(checked(&at(out)).unwrap(), at(target), "{out}");
        }
        for (out, words) in [
            (at("photos"), "a directory"),
            (at("photos/a.png"), "a file of the input"),
            (at("none/x.csv"), "no such directory"),
            ("/dev/null".into(), "a device or a pipe"),
            ("/dev/full".into(), "a device or a pipe"),
        ] {
            let text = checked(&out).unwrap_err().0;
            assert!(
                text.contains(words) && text.contains("\n  help: "),
                "{text}"
            );
        }
    }
}
