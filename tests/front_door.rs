//! What `make` does before it builds anything: it tests parts of the machine and reports what is missing.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

/// Runs `scripts/NAME` with these words and variables, from a folder outside the project.
fn script(name: &str, words: &[&str], variables: &[(&str, &str)]) -> Output {
    let script = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("scripts")
        .join(name);
    let mut command = Command::new(script);
    for name in [
        "CC",
        "CXX",
        "MPICC",
        "MPI_PKG_CONFIG",
        "CRAY_MPICH_DIR",
        "LIBTORCH",
    ] {
        command.env_remove(name);
    }
    let command = command.args(words).envs(variables.iter().copied());
    command.current_dir("/").output().unwrap()
}

fn said(output: &Output) -> String {
    let (out, err) = (&output.stdout, &output.stderr);
    String::from_utf8_lossy(&[&out[..], &err[..]].concat()).into_owned()
}

/// Makes a program in `folder` from these lines of shell.
fn program(folder: &Path, name: &str, lines: &str) -> PathBuf {
    let path = folder.join(name);
    fs::write(&path, format!("#!/bin/sh\n{lines}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}\n{}", said(&output));
}

/// An MPI in a folder with a space in its name: a header, a library, and the wrapper that names both.
struct OwnMpi {
    folder: TempDir,
    wrapper: String,
}

impl OwnMpi {
    fn new(header: &str, body: &str) -> Self {
        let folder = TempDir::with_prefix("an mpi ").unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::write(at("mpi.h"), header).unwrap();
        fs::write(at("own.c"), body).unwrap();
        run(Command::new("cc")
            .arg("-c")
            .arg(at("own.c"))
            .arg("-o")
            .arg(at("own.o")));
        run(Command::new("ar")
            .arg("rc")
            .arg(at("libown.a"))
            .arg(at("own.o")));
        let place = folder.path().display();
        let show = format!("echo \"gcc -I'{place}' -pthread -L'{place}' -lown\"");
        let wrapper = program(folder.path(), "mpicc", &show);
        Self {
            wrapper: wrapper.display().to_string(),
            folder,
        }
    }

    fn flags(&self) -> Output {
        script("mpi-flags.sh", &[], &[("MPICC", &self.wrapper)])
    }
}

const HEADER: &str = "int MPI_Init(int *, char ***);\nint MPI_Finalize(void);\n";
const BODY: &str =
    "int MPI_Init(int *c, char ***v) { return !c || !v; }\nint MPI_Finalize(void) { return 0; }\n";

/// The flags come one per line, because a path in them may have a space.
#[test]
fn an_mpi_that_links_is_used() {
    let mpi = OwnMpi::new(HEADER, BODY);
    let output = mpi.flags();
    let place = mpi.folder.path().display();
    let expected = format!("-I{place}\n-L{place}\n-lown\n");
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(String::from_utf8_lossy(&output.stdout), expected);
}

/// The name of a wrapper or of a header does not prove that there is an MPI: one that does not link is left out, with
/// the reason.
#[test]
fn an_mpi_that_does_not_link_is_left_out() {
    let half = "int MPI_Init(int *c, char ***v) { return !c || !v; }\n";
    let without_a_function = OwnMpi::new(HEADER, half).flags();
    assert_eq!(without_a_function.status.code(), Some(1));
    assert!(
        said(&without_a_function).contains("MPI_Finalize"),
        "{}",
        said(&without_a_function)
    );
    let broken_header = OwnMpi::new("#error this header is for another compiler\n", BODY).flags();
    assert_eq!(broken_header.status.code(), Some(1));
    assert!(
        said(&broken_header).contains("another compiler"),
        "{}",
        said(&broken_header)
    );
    let nowhere = script("mpi-flags.sh", &[], &[("MPICC", "/nowhere/mpicc")]);
    assert_eq!(nowhere.status.code(), Some(1));
    assert!(
        said(&nowhere).contains("there is no /nowhere/mpicc"),
        "{}",
        said(&nowhere)
    );
    let part = script("try.sh", &["mpi"], &[("MPICC", "/nowhere/mpicc")]);
    assert_eq!(part.status.code(), Some(1));
    // The first command continues without it.
    let features = script("features.sh", &[], &[("MPICC", "/nowhere/mpicc")]);
    assert!(
        features.status.success() && features.stdout.is_empty(),
        "{}",
        said(&features)
    );
}

#[test]
fn compilers_are_run_not_looked_for() {
    let folder = tempfile::tempdir().unwrap();
    let works = script("try.sh", &["compilers"], &[]);
    assert!(works.status.success(), "{}", said(&works));
    // A compiler that does nothing must not count as one.
    let name = program(folder.path(), "c++", "exit 0")
        .display()
        .to_string();
    for cxx in [name.as_str(), "/nowhere/c++"] {
        let output = script("try.sh", &["compilers"], &[("CXX", cxx)]);
        assert_eq!(output.status.code(), Some(1), "{cxx}");
        assert!(said(&output).contains(cxx), "{}", said(&output));
    }
}

/// A missing necessity ends set-up before it installs or fetches anything.
#[test]
fn setup_says_what_is_missing_and_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    program(
        folder.path(),
        "cargo",
        "echo 'cargo 1.60.0 (d1fd9fe2c 2022-03-01)'",
    );
    let path = format!(
        "{}:{}",
        folder.path().display(),
        std::env::var("PATH").unwrap()
    );
    let old = script("setup.sh", &[], &[("PATH", &path)]);
    assert_eq!(old.status.code(), Some(1));
    for words in ["cargo 1.60.0 is older than 1.", "\n  help: ", "rustup"] {
        assert!(said(&old).contains(words), "{words}\n{}", said(&old));
    }
    let empty = script(
        "setup.sh",
        &[],
        &[("LIBTORCH", folder.path().to_str().unwrap())],
    );
    assert_eq!(empty.status.code(), Some(1));
    for words in ["is not libtorch 2.11.0", "no include/", "\n  help: "] {
        assert!(said(&empty).contains(words), "{words}\n{}", said(&empty));
    }
    // Another version of libtorch, recorded the way a wheel does it.
    for file in [
        "include/torch/csrc/api/include/torch/torch.h",
        "lib/libtorch_cpu.so",
    ] {
        let file = folder.path().join(file);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, "").unwrap();
    }
    fs::write(
        folder.path().join("version.py"),
        "__version__ = '2.4.1+cpu'\n",
    )
    .unwrap();
    let other = script(
        "setup.sh",
        &[],
        &[("LIBTORCH", folder.path().to_str().unwrap())],
    );
    assert_eq!(other.status.code(), Some(1));
    assert!(said(&other).contains("it is 2.4.1+cpu"), "{}", said(&other));
}

#[test]
fn the_estimate_names_its_parts() {
    let target = tempfile::tempdir().unwrap();
    let target = target.path().to_str().unwrap();
    let output = script(
        "estimate.sh",
        &[],
        &[("CARGO_TARGET_DIR", target), ("LIBTORCH", "/nowhere")],
    );
    assert!(output.status.success(), "{}", said(&output));
    let text = said(&output);
    for words in [
        "make run: about ",
        " core",
        "fetching ",
        "building ",
        "training ",
    ] {
        assert!(text.contains(words), "{words}\n{text}");
    }
    assert_eq!(text.lines().count(), 1, "{text}");
}
