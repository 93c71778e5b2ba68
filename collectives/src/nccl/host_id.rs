//! Ranks that share a GPU.

/// What `NCCL_HOSTID` has to be for process `rank` of this machine, whose processes use the GPUs `devices` (UUIDs, by
/// process): NCCL refuses two ranks on one GPU unless it takes them to be on different hosts. `None`: leave it
/// alone, as the ranks that NCCL takes to be on different hosts do without NVLink and shared memory.
///
/// For trying things out; ranks that share a GPU are slower than one rank that has it alone.
#[must_use]
pub fn host_id(host: &str, rank: usize, devices: &[String]) -> Option<String> {
    let mine = devices.get(rank)?;
    let sharing = devices.iter().filter(|device| *device == mine).count();
    (sharing > 1).then(|| format!("{host}-rank-{rank}"))
}

#[cfg(test)]
mod tests {
    use super::host_id;

    #[test]
    fn only_ranks_that_share_a_gpu_get_an_id_and_all_ids_differ() {
        let devices = ["GPU-a", "GPU-b", "GPU-a", "GPU-c"].map(String::from);
        let ids: Vec<_> = (0..4).map(|rank| host_id("n1", rank, &devices)).collect();
        let of = |rank: usize| Some(format!("n1-rank-{rank}"));
        assert_eq!(ids, [of(0), None, of(2), None]);
        assert_eq!(host_id("n1", 4, &devices), None);
    }
}
