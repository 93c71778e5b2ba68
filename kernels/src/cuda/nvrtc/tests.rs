use super::*;

#[test]
fn libtorch_is_found_among_the_mappings() {
    let maps = "7f0 r-xp 0 00:00 1  /usr/lib/libc.so.6\n\
                7f1 r-xp 0 00:00 2  /opt/a b/torch/lib/libtorch_cpu.so\n";
    assert_eq!(
        loaded_libtorch(maps),
        Some(PathBuf::from("/opt/a b/torch/lib"))
    );
    assert_eq!(loaded_libtorch("7f0 r-xp 0 00:00 1 [heap]\n"), None);
}

#[test]
fn a_chosen_library_is_the_only_one_tried() {
    let search = Search {
        chosen: Some("/nowhere/libnvrtc.so.13".into()),
        libtorch: Search::from_env().libtorch,
    };
    let text = Nvrtc::open(&search).unwrap_err().to_string();
    assert!(
        text.contains("/nowhere/libnvrtc.so.13") && text.contains("\n  help: make setup"),
        "{text}"
    );
    assert!(!text.contains(".so.12"), "{text}");
}

#[test]
fn the_system_loader_is_asked_last() {
    let search = Search {
        chosen: None,
        libtorch: Some("/nowhere/torch/lib".into()),
    };
    assert_eq!(search.candidates(), NAMES.map(PathBuf::from));
}

#[test]
fn a_mistake_in_a_source_is_shown_with_its_line() {
    let nvrtc = Nvrtc::open(&Search::from_env()).unwrap();
    let source = Source {
        file: super::super::source::SourceFile {
            name: "wrong.cu",
            text: "#include \"common.cuh\"\nextern \"C\" __global__ void k() { oops(); }\n",
        },
        kernels: &["k"],
    };
    let error = nvrtc
        .compile(&source, CompileTarget::Cubin(Arch(90)))
        .unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("wrong.cu(2)") && text.contains("oops") && text.contains("sm_90"),
        "{text}"
    );
}
