//! How many ranks start on which nodes: from the job's available nodes to the arguments of one `srun`, or of one
//! `mpirun` where Slurm cannot start MPI itself.

use std::fmt;

use crate::launcher::{self, Launcher};

/// A way in which the ranks of a job can exchange gradients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transport {
    /// The spelling of `train.backend`.
    pub name: &'static str,
    /// Whether it joins only ranks of one node.
    pub one_node: bool,
    /// Whether a launcher of MPI starts the ranks; such a world ends as a whole. Other ranks may join and leave.
    pub by_mpi: bool,
}

/// What the job has and what the configuration allows; the input of [`plan`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// The job's nodes in Slurm's order, each with the job's number of tasks on it.
    pub nodes: Vec<(String, usize)>,
    /// Nodes of the job that are down or do not answer.
    pub down: Vec<String>,
    /// CPUs of a task; none when the job does not specify it.
    pub cpus_per_task: Option<usize>,
    /// GPUs of the job on the batch node, 0 for none.
    pub gpus: usize,
    /// World sizes that the run can have (powers of two that divide its virtual shards).
    pub world_sizes: Vec<usize>,
    /// Transports that the configuration allows; the plan takes the first that reaches the nodes.
    pub transports: Vec<Transport>,
    /// The plugins that `srun --mpi=list` names.
    pub pmi: Vec<String>,
    /// The plugin that the site file asks for, or [`launcher::MPIRUN`].
    pub pmi_wish: Option<String>,
    /// The output of `mpirun --version`; empty without mpirun.
    pub mpirun: String,
}

/// One `srun` or `mpirun`, and what it starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The nodes that ranks start on, in the job's order.
    pub nodes: Vec<String>,
    /// World size; a power of two.
    pub world: usize,
    /// How the ranks exchange gradients.
    pub transport: Transport,
    /// The launcher and its flags; the words of the program follow them.
    pub launch: Vec<String>,
    /// Decisions that a user may want to know, with numbers; the log shows them as warnings.
    pub notes: Vec<String>,
}

/// Why no ranks can start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoPlan(pub String);

impl fmt::Display for NoPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for NoPlan {}

/// Places the ranks.
///
/// # Errors
/// When no node is up, when the transport of one node is wanted on several, or when MPI is needed and Slurm cannot
/// start it.
pub fn plan(offer: &Offer) -> Result<Plan, NoPlan> {
    let up: Vec<&(String, usize)> = offer
        .nodes
        .iter()
        .filter(|(name, tasks)| *tasks > 0 && !offer.down.contains(name))
        .collect();
    let Some((first, _)) = up.first() else {
        return Err(NoPlan(format!(
            "none of the job's {} nodes is up\n  help: see `sinfo -N -l`; requeue the job when its nodes are back",
            offer.nodes.len()
        )));
    };
    let tasks: usize = up.iter().map(|(_, tasks)| tasks).sum();
    let reaches = |transport: &&Transport| up.len() == 1 || !transport.one_node;
    let Some(&transport) = offer.transports.iter().find(reaches) else {
        let names: Vec<&str> = offer.transports.iter().map(|one| one.name).collect();
        return Err(NoPlan(format!(
            "train.backend is {}, which joins ranks of one node, but the job has {} nodes\n  help: submit with --nodes 1, or set train.backend to auto",
            names.join(" or "),
            up.len()
        )));
    };
    let Some(world) = offer
        .world_sizes
        .iter()
        .copied()
        .filter(|size| *size <= tasks)
        .max()
    else {
        return Err(NoPlan(format!(
            "the job has {tasks} tasks, and the run no number of ranks that small: {:?}\n  help: submit with more nodes or ranks per node",
            offer.world_sizes
        )));
    };
    let mut notes = Vec::new();
    if up.len() < offer.nodes.len() {
        let down: Vec<&str> = offer.down.iter().map(String::as_str).collect();
        notes.push(format!(
            "{} of the job's {} nodes are down ({})",
            offer.nodes.len() - up.len(),
            offer.nodes.len(),
            down.join(", ")
        ));
    }
    if world < tasks {
        notes.push(format!(
            "{world} ranks for {tasks} tasks: their number must be one of {:?} (train.virtual_shards)",
            offer.world_sizes
        ));
    }
    let places = share_out(&up, world);
    let launch = match transport.by_mpi {
        false => srun(offer, &places, "none"),
        true => {
            let wish = offer.pmi_wish.as_deref();
            match launcher::choose(&offer.pmi, &offer.mpirun, wish).map_err(NoPlan)? {
                Launcher::Srun(plugin) => srun(offer, &places, &plugin),
                Launcher::Mpirun(own) => {
                    notes.push(format!(
                        "ranks start by mpirun inside the allocation; srun knows {:?}",
                        offer.pmi
                    ));
                    own.words(&places)
                }
            }
        }
    };
    if first != &offer.nodes[0].0 {
        notes.push(format!("rank 0 is on {first}"));
    }
    Ok(Plan {
        nodes: places.iter().map(|(node, _)| (*node).to_owned()).collect(),
        world,
        transport,
        launch,
        notes,
    })
}

/// How many ranks each node gets, on as few nodes as hold them, in the job's order. All nodes get the same number where
/// that is possible; otherwise the first nodes are filled, as `--distribution=block` does.
fn share_out<'a>(up: &[&'a (String, usize)], world: usize) -> Vec<(&'a str, usize)> {
    let mut left = world;
    let mut places = Vec::new();
    for (node, room) in up.iter().copied() {
        if left == 0 {
            break;
        }
        let here = left.min(*room);
        places.push((node.as_str(), here));
        left -= here;
    }
    let each = world / places.len().max(1);
    let has_room = up.iter().zip(&places).all(|((_, room), _)| *room >= each);
    if each * places.len() == world && has_room {
        places.iter_mut().for_each(|(_, here)| *here = each);
    }
    places
}

fn srun(offer: &Offer, places: &[(&str, usize)], mpi: &str) -> Vec<String> {
    let nodes: Vec<&str> = places.iter().map(|(node, _)| *node).collect();
    let world: usize = places.iter().map(|(_, ranks)| ranks).sum();
    let mut words = vec![
        "srun".to_owned(),
        format!("--nodes={}", nodes.len()),
        format!("--ntasks={world}"),
        format!("--nodelist={}", nodes.join(",")),
        "--distribution=block".to_owned(),
        // The coordinator and the other ranks decide what a lost node means: srun must not end the step.
        "--no-kill".to_owned(),
        // Steps of the same job, such as the step that stages data, must not wait for each other.
        "--overlap".to_owned(),
    ];
    if places.iter().all(|(_, ranks)| *ranks == places[0].1) {
        words.push(format!("--ntasks-per-node={}", places[0].1));
    }
    if let Some(cpus) = offer.cpus_per_task {
        words.push(format!("--cpus-per-task={cpus}"));
    }
    if offer.gpus > 0 {
        // NCCL works best when every rank sees all GPUs of its node; a rank takes the GPU of its local rank.
        words.push(format!("--gpus-per-node={}", offer.gpus));
    }
    words.push(format!("--mpi={mpi}"));
    // An MPI world that lost a rank never continues, so it must end as a whole. Other worlds continue without the rank.
    words.push(format!("--kill-on-bad-exit={}", u8::from(mpi != "none")));
    words
}

/// Nodes that cannot be used, by lines `NAME STATE`. The first ones come from `sinfo -h -N -o '%N %t'`; the batch
/// script appends its own (`up`, `down`) after it has asked each node itself, and the last line about a node counts.
pub fn down_nodes(states: &str) -> Vec<String> {
    let gone = [
        "down",
        "fail",
        "drain",
        "drng",
        "boot",
        "powering",
        "unk",
        "no_respond",
        "maint",
    ];
    let is_down = |state: &str| {
        let flags = state.trim_end_matches(|c: char| !c.is_ascii_alphanumeric());
        // A star means that the node does not answer Slurm. A draining node still works for this job.
        let unreachable = state.ends_with('*');
        unreachable || (gone.contains(&flags) && !matches!(flags, "drng" | "drain" | "maint"))
    };
    let mut down: Vec<String> = Vec::new();
    for line in states.lines() {
        let Some((name, state)) = line.split_once(char::is_whitespace) else {
            continue;
        };
        // The last line about a node counts.
        down.retain(|other| other != name);
        if is_down(state.trim()) {
            down.push(name.to_owned());
        }
    }
    down.sort();
    down
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const fn transport(name: &'static str, one_node: bool, by_mpi: bool) -> Transport {
        Transport {
            name,
            one_node,
            by_mpi,
        }
    }
    const LOCAL: Transport = transport("local", true, false);
    const MPI: Transport = transport("mpi", false, true);
    const NCCL: Transport = transport("nccl", false, false);

    fn offer(nodes: &[(&str, usize)]) -> Offer {
        Offer {
            nodes: nodes.iter().map(|(n, t)| ((*n).to_owned(), *t)).collect(),
            down: Vec::new(),
            cpus_per_task: None,
            gpus: 0,
            world_sizes: vec![1, 2, 4],
            transports: vec![LOCAL, MPI],
            pmi: vec!["none".to_owned(), "pmi2".to_owned(), "pmix".to_owned()],
            pmi_wish: None,
            mpirun: String::new(),
        }
    }

    fn has(plan: &Plan, flag: &str) -> bool {
        plan.launch.iter().any(|f| f == flag)
    }

    #[test]
    fn one_node_is_elastic_and_several_are_mpi() {
        let one = plan(&offer(&[("n1", 4)])).unwrap();
        assert_eq!((one.transport, one.world), (LOCAL, 4));
        assert!(has(&one, "--kill-on-bad-exit=0") && has(&one, "--mpi=none"));
        let two = plan(&offer(&[("n1", 2), ("n2", 2)])).unwrap();
        assert_eq!((two.transport, two.world), (MPI, 4));
        assert!(has(&two, "--kill-on-bad-exit=1") && has(&two, "--mpi=pmix"));
        assert!(has(&two, "--ntasks-per-node=2") && has(&two, "--nodelist=n1,n2"));
    }

    #[test]
    fn goes_on_with_the_nodes_that_are_left() {
        let mut lost = offer(&[("n1", 2), ("n2", 2)]);
        lost.down = vec!["n2".to_owned()];
        let left = plan(&lost).unwrap();
        assert_eq!(left.nodes, ["n1"]);
        assert_eq!((left.transport, left.world), (LOCAL, 2));
        assert!(
            left.notes[0].contains("1 of the job's 2 nodes"),
            "{:?}",
            left.notes
        );
        lost.transports = vec![MPI];
        assert_eq!(plan(&lost).unwrap().transport, MPI);
        lost.down.push("n1".to_owned());
        assert!(
            plan(&lost)
                .unwrap_err()
                .0
                .contains("none of the job's 2 nodes")
        );
    }

    #[test]
    fn ranks_are_a_number_that_the_run_can_have() {
        let three = plan(&offer(&[("n1", 2), ("n2", 2), ("n3", 2)])).unwrap();
        assert_eq!((three.world, three.nodes.len()), (4, 2));
        assert!(
            three.notes[0].contains("4 ranks for 6 tasks"),
            "{:?}",
            three.notes
        );
        let mut none = offer(&[("n1", 1)]);
        none.world_sizes = vec![2];
        assert!(plan(&none).unwrap_err().0.contains("1 tasks"));
    }

    #[test]
    fn nccl_joins_any_nodes_and_needs_no_mpi() {
        let mut two = offer(&[("n1", 1), ("n2", 1)]);
        two.transports = vec![NCCL];
        two.pmi = vec!["none".to_owned()];
        let plan = plan(&two).unwrap();
        assert_eq!((plan.transport, plan.world), (NCCL, 2));
        assert!(has(&plan, "--mpi=none"));
    }

    #[test]
    fn local_refuses_several_nodes_and_mpi_needs_a_launcher() {
        let mut local = offer(&[("n1", 1), ("n2", 1)]);
        local.transports = vec![LOCAL];
        assert!(plan(&local).unwrap_err().0.contains("2 nodes"));
        let mut bare = offer(&[("n1", 1), ("n2", 1)]);
        bare.pmi = vec!["none".to_owned(), "pmi2".to_owned()];
        assert!(
            plan(&bare)
                .unwrap_err()
                .0
                .contains("nor is there an mpirun")
        );
        bare.pmi_wish = Some("pmi2".to_owned());
        assert!(has(&plan(&bare).unwrap(), "--mpi=pmi2"));
    }

    #[test]
    fn mpirun_starts_what_srun_cannot() {
        let mut bare = offer(&[("n1", 1), ("n2", 3)]);
        bare.pmi = vec!["none".to_owned(), "pmi2".to_owned()];
        bare.mpirun = "mpirun (Open MPI) 4.1.4".to_owned();
        let open = plan(&bare).unwrap();
        let words = "mpirun -n 4 --host n1:1,n2:3 --bind-to none";
        assert_eq!(open.launch.join(" "), words);
        assert!(open.notes[0].contains("mpirun"), "{:?}", open.notes);
        // Ranks on one node need no MPI.
        let mut one = offer(&[("n1", 2)]);
        one.pmi_wish = Some(launcher::MPIRUN.to_owned());
        assert_eq!(plan(&one).unwrap().launch[0], "srun");
    }

    #[test]
    fn gpus_are_seen_by_all_ranks_of_a_node() {
        let mut gpus = offer(&[("n1", 2)]);
        gpus.gpus = 2;
        gpus.cpus_per_task = Some(8);
        let plan = plan(&gpus).unwrap();
        assert!(has(&plan, "--gpus-per-node=2"));
        assert!(has(&plan, "--cpus-per-task=8"));
    }

    #[test]
    fn states_of_nodes_are_understood() {
        let states =
            "n1 alloc\nn2 down*\nn2 down*\nn3 mix\nn4 drng\nn5 down\nn6 idle*\nn7 alloc-\n";
        assert_eq!(down_nodes(states), ["n2", "n5", "n6"]);
        assert!(down_nodes("").is_empty());
        // Neither node answers Slurm for a moment, but n1 has just started a process.
        assert_eq!(down_nodes("n1 mix*\nn2 mix*\nn1 up\nn2 down\n"), ["n2"]);
    }

    proptest! {
        #[test]
        fn every_rank_has_a_place_and_no_dead_node_gets_one(
            tasks in proptest::collection::vec(0usize..5, 1..6),
            dead in proptest::collection::vec(any::<bool>(), 6),
            shards in 0u32..5,
        ) {
            let names: Vec<String> = (0..tasks.len()).map(|i| format!("n{i}")).collect();
            let down: Vec<String> = names.iter().zip(&dead).filter(|(_, d)| **d).map(|(n, _)| n.clone()).collect();
            let offer = Offer {
                nodes: names.iter().cloned().zip(tasks.clone()).collect(),
                down: down.clone(),
                world_sizes: (0..=shards).map(|k| 1 << k).collect(),
                ..offer(&[])
            };
            let with_mpirun = Offer {
                pmi: Vec::new(),
                mpirun: "mpirun (Open MPI) 4.1.4".to_owned(),
                transports: vec![MPI],
                ..offer.clone()
            };
            if let Ok(plan) = plan(&with_mpirun) {
                let hosts = plan.launch[4].split(',').filter_map(|host| host.split_once(':'));
                let hosts: Vec<(&str, usize)> = hosts.map(|(name, n)| (name, n.parse().unwrap())).collect();
                prop_assert_eq!(hosts.iter().map(|(_, n)| n).sum::<usize>(), plan.world);
                for (name, n) in hosts {
                    let room = with_mpirun.nodes.iter().find(|(other, _)| other == name).unwrap().1;
                    prop_assert!(n <= room, "{} ranks on {}", n, name);
                }
            }
            if let Ok(plan) = plan(&offer) {
                let places = |name: &String| offer.nodes.iter().find(|(n, _)| n == name).map_or(0, |(_, t)| *t);
                prop_assert!(plan.nodes.iter().map(places).sum::<usize>() >= plan.world);
                prop_assert!(plan.nodes.iter().all(|n| !down.contains(n) && places(n) > 0));
                prop_assert!(offer.world_sizes.contains(&plan.world));
                prop_assert!(plan.nodes.len() == 1 || plan.transport == MPI);
            } else {
                let up = offer.nodes.iter().any(|(n, t)| *t > 0 && !down.contains(n));
                prop_assert!(!up);
            }
        }
    }
}
