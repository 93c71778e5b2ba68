//! Libraries that Fovea takes, warns of or refuses.

use fovea_collectives::Error;
use fovea_emulate::nccl::Set;

use super::*;

fn open() -> Result<Library> {
    Library::open(&NcclSearch {
        // The folder will do as well.
        chosen: standin::path().parent().map(Into::into),
        libtorch: None,
    })
}

#[test]
fn a_version_that_is_known_to_be_bad_is_warned_of() {
    let _turn = Turn::take(false);
    assert_eq!(open().unwrap().warning(), None);
    standin::set(Set::Version(22_804));
    let library = open().unwrap();
    let warning = library.warning().unwrap();
    assert!(
        warning.contains("NCCL 2.28.4") && warning.contains("help:"),
        "{warning}"
    );
    assert_eq!(library.path(), standin::path());
}

#[test]
fn a_version_that_blocks_is_refused() {
    let _turn = Turn::take(false);
    standin::set(Set::Version(21_304));
    let error = open().map(|_| ()).unwrap_err();
    let refused = matches!(&error, Error::NcclTooOld { version, .. } if version == "2.13.4");
    assert!(refused, "{error}");
    let text = error.to_string();
    assert!(
        text.contains("2.14.0") && text.contains("FOVEA_NCCL") && error.is_usage(),
        "{text}"
    );
}

#[test]
fn another_library_is_no_nccl() {
    let search = NcclSearch {
        chosen: Some("libc.so.6".into()),
        libtorch: None,
    };
    let error = Library::open(&search).map(|_| ()).unwrap_err().to_string();
    assert!(
        error.contains("libc.so.6") && error.contains("ncclGetVersion"),
        "{error}"
    );
}
