use super::*;

fn parse(text: &str) -> Result<Site, Error> {
    Site::parse(text, Path::new("/home/user/.config/fovea/site.toml"))
}

#[test]
fn every_key() {
    let site = parse(
        r##"
        partition = "gpu"
        account = "lab"
        qos = "long"
        constraint = "a100&ib"
        modules = ["gcc/13", "openmpi/5.0"]
        gpu = "gres:a100"
        scratch = ["$SLURM_TMPDIR", "/scratch/local"]
        interface = "ib0"
        requeue = "chain"
        chain = 5
        container = "apptainer exec --nv"
        sbatch = ["#SBATCH --mem=0", "--exclusive"]
        mpi = "pmix_v4"
        time = "1-12:00:00"
        "##,
    )
    .expect("a site");
    let text = |t: &str| Some(t.to_owned());
    assert_eq!(
        site,
        Site {
            partition: text("gpu"),
            account: text("lab"),
            qos: text("long"),
            constraint: text("a100&ib"),
            modules: vec!["gcc/13".to_owned(), "openmpi/5.0".to_owned()],
            gpu: GpuLine::Gres,
            gpu_type: text("a100"),
            scratch: vec!["$SLURM_TMPDIR".to_owned(), "/scratch/local".to_owned()],
            interface: text("ib0"),
            requeue: Requeue::Chain,
            chain: 5,
            container: ["apptainer", "exec", "--nv"].map(str::to_owned).to_vec(),
            sbatch: vec!["--mem=0".to_owned(), "--exclusive".to_owned()],
            mpi: text("pmix_v4"),
            time: Duration::from_secs(36 * 3600),
        }
    );
    assert_eq!(parse("").expect("nothing"), Site::default());
    assert_eq!(parse("scratch = \"/tmp\"").expect("one").scratch, ["/tmp"]);
    assert_eq!(
        parse("time = 90").expect("minutes").time,
        Duration::from_secs(5400)
    );
}

#[test]
fn an_unknown_key_is_named_with_the_nearest_one_and_its_line() {
    let error =
        parse("# mine\npartition = \"gpu\"\nacount = \"lab\"\n").expect_err("a typing error");
    assert_eq!(
        error.to_string(),
        "/home/user/.config/fovea/site.toml, line 3: unknown key \"acount\"\n  help: did you mean account?"
    );
    let error = parse("walltime_of_every_job = 3").expect_err("another word");
    assert!(
        error.help.starts_with("the keys are partition, account"),
        "{error}"
    );
}

#[test]
fn values_that_cannot_be_used() {
    for (text, line, said) in [
        ("\n\npartition = 3", 3, "not a text"),
        ("partition = \"a b\"", 1, "a space"),
        ("account = \"\"", 1, "empty"),
        ("qos = \"a\\nb\"", 1, "'\\n' in it"),
        ("gpu = \"gpus\"", 1, "neither gpus-per-node nor gres"),
        ("gpu = \"gres:\"", 1, "no type"),
        ("requeue = \"yes\"", 1, "neither scontrol nor chain"),
        ("chain = 0", 1, "not in 1..=100"),
        ("chain = \"3\"", 1, "whole number"),
        ("sbatch = [\"mem=0\"]", 1, "begins without -"),
        ("time = \"0:30\"", 1, "less than a minute"),
        ("time = \"4h\"", 1, "no number"),
        ("time = \"UNLIMITED\"", 1, "needs a limit"),
        ("modules = [1]", 1, "not a text"),
        ("a = 1\npartition = \"x", 2, ""),
    ] {
        let error = parse(text).expect_err(text);
        assert_eq!(error.line, Some(line), "{error}");
        assert!(error.what.contains(said), "{error}");
        assert!(error.to_string().contains("\n  help: "), "{error}");
    }
}

#[test]
fn where_it_lies() {
    let at = |vars: &[(&str, &str)]| {
        let vars: std::collections::HashMap<_, _> = vars
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect();
        Site::location(|name| vars.get(name).cloned())
    };
    let home = ("HOME", "/home/user");
    let config = ("XDG_CONFIG_HOME", "/cfg");
    let path = |p: &str, named| Some((PathBuf::from(p), named));
    assert_eq!(
        at(&[home]),
        path("/home/user/.config/fovea/site.toml", false)
    );
    assert_eq!(at(&[home, config]), path("/cfg/fovea/site.toml", false));
    assert_eq!(
        at(&[home, config, ("FOVEA_SITE", "/s.toml")]),
        path("/s.toml", true)
    );
    assert_eq!(at(&[]), None);
}

#[test]
fn a_missing_file_is_the_default_unless_it_was_named() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("site.toml");
    assert_eq!(Site::read(&path, false), Ok(Site::default()));
    assert!(
        Site::read(&path, true)
            .expect_err("named")
            .to_string()
            .contains("FOVEA_SITE")
    );
    std::fs::write(&path, "partition = \"cpu\"").expect("a file");
    assert_eq!(
        Site::read(&path, true)
            .expect("a site")
            .partition
            .as_deref(),
        Some("cpu")
    );
}
