//! Steps as CUDA graphs: the work of an attempt is recorded once for each shape of a batch, and from then on launched
//! as a whole.
//!
//! A graph contains addresses, so its inputs and outputs (parameters, sums, blocks, images) must not move; if they do,
//! the graphs are dropped.

use std::collections::HashMap;
use std::ffi::{c_char, c_void};

use tch::Tensor;

use crate::error::Result;
use crate::ops::succeeded;

/// For each virtual shard, the number of patches of each of its images; none for an empty shard.
pub type PatchCounts = Vec<Option<Vec<usize>>>;

/// Steps of a shape that run plainly before one is recorded: cuDNN measures its algorithms in the first.
const PLAIN: u32 = 2;
/// Most graphs that are kept, because each has activations of its own.
const MOST: usize = 4;

unsafe extern "C" {
    fn fovea_graph_begin(graph: *mut *mut c_void) -> *mut c_char;
    fn fovea_graph_end(graph: *mut c_void) -> *mut c_char;
    fn fovea_graph_replay(graph: *mut c_void) -> *mut c_char;
    fn fovea_graph_free(graph: *mut c_void);
}

/// The recorded graphs, by shape.
pub struct Graphs {
    is_on: bool,
    seen: HashMap<PatchCounts, u32>,
    recorded: HashMap<PatchCounts, Recorded>,
}

impl Graphs {
    /// No graphs yet; with `is_on` false there will never be any.
    pub fn new(is_on: bool) -> Self {
        Self {
            is_on,
            seen: HashMap::new(),
            recorded: HashMap::new(),
        }
    }

    /// Counts a step, and returns whether a graph exists or must be recorded for it.
    pub fn is_due(&mut self, shape: &PatchCounts) -> bool {
        if !self.is_on || self.recorded.contains_key(shape) {
            return self.is_on;
        }
        // Shapes that hardly recur must not fill the memory.
        if !self.seen.contains_key(shape) && self.seen.len() >= 16 * MOST {
            self.seen.clear();
        }
        let seen = self.seen.entry(shape.clone()).or_insert(0);
        *seen += 1;
        *seen > PLAIN && self.recorded.len() < MOST
    }

    /// Number of recorded graphs.
    pub fn count(&self) -> usize {
        self.recorded.len()
    }

    /// The graph of a shape; none if it has not been recorded.
    pub fn get(&self, shape: &PatchCounts) -> Option<&Recorded> {
        self.recorded.get(shape)
    }

    /// Keeps a recorded graph.
    pub fn keep(&mut self, shape: PatchCounts, recorded: Recorded) -> &Recorded {
        self.recorded.entry(shape).or_insert(recorded)
    }

    /// Drops all graphs after addresses or the ranks have changed; steps are then recorded again.
    pub fn forget(&mut self) {
        self.recorded.clear();
    }

    /// Drops all graphs and records none from now on.
    pub fn give_up(&mut self) {
        self.is_on = false;
        self.forget();
    }
}

/// One recorded attempt, ready to be launched again.
pub struct Recorded {
    graph: Handle,
    sums: Tensor,
    /// Further tensors that it reads and writes, which must not move.
    _kept: Vec<Tensor>,
}

impl Recorded {
    /// Records the work that `work`, which returns the sums, puts on this thread's current stream. `work` must not wait
    /// for the stream.
    pub fn capture(work: impl FnOnce() -> Result<Tensor>) -> Result<Self> {
        let mut handle = std::ptr::null_mut();
        // SAFETY: writes one pointer when it succeeds.
        succeeded(unsafe { fovea_graph_begin(&mut handle) })?;
        let graph = Handle(handle);
        let worked = work();
        // SAFETY: begun above, in this thread, and ended once, whether `work` failed or not.
        let ended = succeeded(unsafe { fovea_graph_end(handle) });
        if let Err(error) = ended {
            // libtorch's allocator still asks the graph what is being captured, so the graph must stay.
            std::mem::forget(graph);
            return Err(worked.err().unwrap_or(error));
        }
        let sums = worked?;
        Ok(Self {
            graph,
            sums,
            _kept: Vec::new(),
        })
    }

    /// Also keeps tensors that must stay where they are.
    pub fn keeping(mut self, tensors: Vec<Tensor>) -> Self {
        self._kept = tensors;
        self
    }

    /// Puts the recorded work on the stream. Returns the tensor that will hold the sums.
    pub fn replay(&self) -> Result<Tensor> {
        // SAFETY: a graph that was ended; everything it uses is alive, as the module demands.
        succeeded(unsafe { fovea_graph_replay(self.graph.0) })?;
        Ok(self.sums.shallow_clone())
    }
}

struct Handle(*mut c_void);

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: from `fovea_graph_begin`, freed once.
        unsafe { fovea_graph_free(self.0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shape_is_recorded_when_it_recurs() {
        let shape = |n: usize| vec![Some(vec![n]), None];
        let mut graphs = Graphs::new(true);
        assert_eq!(
            [1, 1, 1].map(|n| graphs.is_due(&shape(n))),
            [false, false, true]
        );
        assert!(!graphs.is_due(&shape(2)));
        for n in 10..200 {
            assert!(!graphs.is_due(&shape(n)));
        }
        assert!(graphs.seen.len() <= 16 * MOST);
        graphs.give_up();
        assert!(!graphs.is_due(&shape(1)));
        assert!(!Graphs::new(false).is_due(&shape(1)));
    }

    /// graph.cpp looks these functions up in libtorch's CUDA side, whose file exists without a GPU too.
    #[test]
    fn libtorch_has_the_functions() {
        let library = concat!(env!("FOVEA_LIBTORCH"), "/lib/libtorch_cuda.so");
        let file = std::fs::File::open(library).expect("libtorch with its CUDA side");
        // SAFETY: nobody changes the library while the tests run.
        let bytes = unsafe { memmap2::Mmap::map(&file) }.expect("a mapping");
        let source = include_str!("../../cpp/graph.cpp");
        let names: Vec<&str> = source
            .split('"')
            .filter(|word| word.starts_with("_ZN"))
            .collect();
        assert_eq!(names.len(), 5);
        let mut missing: Vec<&str> = names;
        // Names in a string table end in NUL; the table is near the beginning of the file.
        for word in bytes.split(|byte| *byte == 0) {
            missing.retain(|name| name.as_bytes() != word);
            if missing.is_empty() {
                return;
            }
        }
        panic!("{missing:?} are not in {library}");
    }
}
