//! NVRTC, the CUDA compiler as a library. It needs neither a GPU nor a driver.
//!
//! This module binds NVRTC itself rather than through `cudarc`, which opens the library by its short name: on a machine
//! with several it might not open the one chosen here, and it panics if there is none.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

use super::arch::{Arch, CompileTarget};
use super::error::{Error, Result};
use super::source::{HEADERS, OPTIONS, Source};

/// Names of the library; the tested one comes first.
const NAMES: [&str; 3] = ["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"];

/// Folders of NVRTC's PyPI wheels, relative to libtorch's folder.
const BESIDE_LIBTORCH: [&str; 2] = ["../../nvidia/cu13/lib", "../../nvidia/cuda_nvrtc/lib"];

type ProgramHandle = *mut c_void;
type Code = c_int;
const SUCCESS: Code = 0;
const COMPILATION: Code = 6;

/// Where to look for NVRTC. If `chosen` is set, only there; else in folders next to libtorch, then with the system's
/// loader.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Search {
    /// Path of the library or of its folder; absent unless `FOVEA_NVRTC` is set.
    pub chosen: Option<PathBuf>,
    /// The `lib` folder of libtorch; absent if no libtorch is known.
    pub libtorch: Option<PathBuf>,
}

impl Search {
    /// Reads the environment: `FOVEA_NVRTC`, and the folder of the libtorch that this process has loaded, else that of
    /// `LIBTORCH`.
    #[must_use]
    pub fn from_env() -> Self {
        let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
        Self {
            chosen: variable("FOVEA_NVRTC").map(PathBuf::from),
            libtorch: loaded_libtorch(&maps)
                .or_else(|| variable("LIBTORCH").map(|root| PathBuf::from(root).join("lib"))),
        }
    }

    /// Paths to try in order; bare names for the loader come last.
    fn candidates(&self) -> Vec<PathBuf> {
        if let Some(chosen) = &self.chosen {
            return if chosen.is_dir() {
                NAMES.iter().map(|name| chosen.join(name)).collect()
            } else {
                vec![chosen.clone()]
            };
        }
        let folders = BESIDE_LIBTORCH
            .iter()
            .filter_map(|folder| Some(self.libtorch.as_ref()?.join(folder)));
        let beside = folders.flat_map(|folder| NAMES.map(|name| folder.join(name)));
        beside
            .filter(|path| path.exists())
            .chain(NAMES.map(PathBuf::from))
            .collect()
    }
}

/// The folder of libtorch among the mappings of a process.
fn loaded_libtorch(maps: &str) -> Option<PathBuf> {
    let line = maps.lines().find(|l| l.ends_with("/libtorch_cpu.so"))?;
    Some(Path::new(&line[line.find('/')?..]).parent()?.to_path_buf())
}

/// NVRTC, loaded into this process.
#[derive(Debug)]
pub struct Nvrtc {
    library: Library,
    /// NVRTC's version, e.g. `13.0`.
    version: String,
}

impl Nvrtc {
    /// Loads the first NVRTC of the search that can be loaded.
    pub fn open(search: &Search) -> Result<Self> {
        let mut tried = Vec::new();
        for path in search.candidates() {
            // SAFETY: loading NVRTC runs no code but its own initialisers.
            match unsafe { Library::open(Some(&path), RTLD_NOW | RTLD_GLOBAL) } {
                Ok(library) => return Self::new(library, path.parent()),
                Err(error) => tried.push(format!("{} ({error})", path.display())),
            }
        }
        Err(Error::NvrtcMissing {
            tried: tried.join(", "),
        })
    }

    fn new(library: Library, folder: Option<&Path>) -> Result<Self> {
        let mut nvrtc = Self {
            library,
            version: "?".into(),
        };
        let (mut major, mut minor): (c_int, c_int) = (0, 0);
        let symbol = nvrtc
            .function::<unsafe extern "C" fn(*mut c_int, *mut c_int) -> Code>(b"nvrtcVersion\0")?;
        // SAFETY: nvrtcVersion(int *major, int *minor).
        nvrtc.check("nvrtcVersion", unsafe { symbol(&mut major, &mut minor) })?;
        nvrtc.version = format!("{major}.{minor}");
        // NVRTC opens its second half, the builtins, by name, and the loader would not look in this folder. It finds an
        // open library of that name first, so the builtins stay open.
        if let Some(folder) = folder {
            let builtins = folder.join(format!("libnvrtc-builtins.so.{}", nvrtc.version));
            // SAFETY: as for NVRTC itself.
            if let Ok(builtins) = unsafe { Library::open(Some(&builtins), RTLD_NOW | RTLD_GLOBAL) }
            {
                std::mem::forget(builtins);
            }
        }
        Ok(nvrtc)
    }

    /// Version of the library, e.g. `13.0`.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Architectures that this library compiles for.
    pub fn supported(&self) -> Result<Vec<Arch>> {
        type Count = unsafe extern "C" fn(*mut c_int) -> Code;
        let mut count = 0;
        let symbol = self.function::<Count>(b"nvrtcGetNumSupportedArchs\0")?;
        // SAFETY: nvrtcGetNumSupportedArchs(int *count).
        self.check("nvrtcGetNumSupportedArchs", unsafe { symbol(&mut count) })?;
        let mut archs: Vec<c_int> = vec![0; usize::try_from(count).unwrap_or(0)];
        let symbol = self.function::<Count>(b"nvrtcGetSupportedArchs\0")?;
        // SAFETY: nvrtcGetSupportedArchs writes as many ints as the call before said.
        self.check("nvrtcGetSupportedArchs", unsafe {
            symbol(archs.as_mut_ptr())
        })?;
        Ok(archs.into_iter().map(|arch| Arch(arch as u32)).collect())
    }

    /// Compiles `source` to machine code or PTX.
    pub fn compile(&self, source: &Source, target: CompileTarget) -> Result<Vec<u8>> {
        let text = c_string(source.file.text)?;
        let name = c_string(source.file.name)?;
        let headers = HEADERS.map(|header| (c_string(header.text), c_string(header.name)));
        let mut texts = Vec::new();
        let mut names = Vec::new();
        for (text, name) in headers {
            texts.push(text?);
            names.push(name?);
        }
        let text_pointers: Vec<_> = texts.iter().map(|text| text.as_ptr()).collect();
        let name_pointers: Vec<_> = names.iter().map(|name| name.as_ptr()).collect();
        type Create = unsafe extern "C" fn(
            *mut ProgramHandle,
            *const c_char,
            *const c_char,
            c_int,
            *const *const c_char,
            *const *const c_char,
        ) -> Code;
        let create = self.function::<Create>(b"nvrtcCreateProgram\0")?;
        let mut handle: ProgramHandle = std::ptr::null_mut();
        // SAFETY: the strings end in NUL and live until the program is destroyed.
        let code = unsafe {
            create(
                &mut handle,
                text.as_ptr(),
                name.as_ptr(),
                HEADERS.len() as c_int,
                text_pointers.as_ptr(),
                name_pointers.as_ptr(),
            )
        };
        self.check("nvrtcCreateProgram", code)?;
        let program = Program {
            nvrtc: self,
            handle,
        };
        program.compile(source, target)?;
        match target {
            CompileTarget::Cubin(_) => program.output(b"nvrtcGetCUBINSize\0", b"nvrtcGetCUBIN\0"),
            CompileTarget::Ptx(_) => program.output(b"nvrtcGetPTXSize\0", b"nvrtcGetPTX\0"),
        }
    }

    /// A function of the library. `F` is its type in nvrtc.h.
    fn function<F: Copy>(&self, name: &'static [u8]) -> Result<F> {
        // SAFETY: every caller passes the type that nvrtc.h declares for the name, and calls the
        // function only while the library, which self owns, is open.
        match unsafe { self.library.get::<F>(name) } {
            Ok(symbol) => Ok(*symbol),
            Err(error) => Err(Error::NvrtcMissing {
                tried: format!("NVRTC {} ({error})", self.version),
            }),
        }
    }

    fn check(&self, call: &'static str, code: Code) -> Result<()> {
        if code == SUCCESS {
            return Ok(());
        }
        type Words = unsafe extern "C" fn(Code) -> *const c_char;
        let text = match self.function::<Words>(b"nvrtcGetErrorString\0") {
            // SAFETY: it gives a literal for any code.
            Ok(words) => unsafe { CStr::from_ptr(words(code)) }
                .to_string_lossy()
                .into_owned(),
            Err(_) => "no text".into(),
        };
        Err(Error::Nvrtc {
            version: self.version.clone(),
            call,
            code,
            text,
        })
    }
}

/// A source handed to the compiler.
struct Program<'a> {
    nvrtc: &'a Nvrtc,
    handle: ProgramHandle,
}

impl Program<'_> {
    fn compile(&self, source: &Source, target: CompileTarget) -> Result<()> {
        let options = OPTIONS.iter().map(|option| c_string(option));
        let options: Vec<CString> = options
            .chain([c_string(&target.option())])
            .collect::<Result<_>>()?;
        let pointers: Vec<_> = options.iter().map(|option| option.as_ptr()).collect();
        type Compile = unsafe extern "C" fn(ProgramHandle, c_int, *const *const c_char) -> Code;
        let compile = self.nvrtc.function::<Compile>(b"nvrtcCompileProgram\0")?;
        // SAFETY: a live program and as many options as said.
        match unsafe { compile(self.handle, pointers.len() as c_int, pointers.as_ptr()) } {
            COMPILATION => Err(Error::Compile {
                file: source.file.name,
                arch: target.arch(),
                version: self.nvrtc.version.clone(),
                log: self.log()?,
            }),
            code => self.nvrtc.check("nvrtcCompileProgram", code),
        }
    }

    fn log(&self) -> Result<String> {
        let bytes = self.output(b"nvrtcGetProgramLogSize\0", b"nvrtcGetProgramLog\0")?;
        Ok(String::from_utf8_lossy(&bytes)
            .trim_end_matches(['\0', '\n'])
            .to_owned())
    }

    fn output(&self, size: &'static [u8], get: &'static [u8]) -> Result<Vec<u8>> {
        let mut bytes = 0usize;
        let symbol = self
            .nvrtc
            .function::<unsafe extern "C" fn(ProgramHandle, *mut usize) -> Code>(size)?;
        // SAFETY: nvrtcGet...Size(program, size_t *).
        self.nvrtc.check("nvrtcGet...Size", unsafe {
            symbol(self.handle, &mut bytes)
        })?;
        let mut out = vec![0u8; bytes];
        let symbol = self
            .nvrtc
            .function::<unsafe extern "C" fn(ProgramHandle, *mut u8) -> Code>(get)?;
        // SAFETY: it writes as many bytes as the call before said.
        self.nvrtc.check("nvrtcGet...", unsafe {
            symbol(self.handle, out.as_mut_ptr())
        })?;
        Ok(out)
    }
}

impl Drop for Program<'_> {
    fn drop(&mut self) {
        type Destroy = unsafe extern "C" fn(*mut ProgramHandle) -> Code;
        if let Ok(destroy) = self.nvrtc.function::<Destroy>(b"nvrtcDestroyProgram\0") {
            // SAFETY: a live program, destroyed once. A failure would only leak it.
            unsafe { destroy(&mut self.handle) };
        }
    }
}

fn c_string(text: &str) -> Result<CString> {
    CString::new(text).map_err(|_| {
        Error::Argument(crate::Error::Argument {
            what: "a kernel source or option",
            limit: "text without NUL",
            actual: format!("{} bytes with one", text.len()),
            help: "remove the NUL character from kernels/cuda",
        })
    })
}

#[cfg(test)]
mod tests;
