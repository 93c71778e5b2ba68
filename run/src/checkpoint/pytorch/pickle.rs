//! A pickle as plain data: the part of the format that PyTorch's state dicts use, and nothing that could run code.
//!
//! Python's own unpickler calls whatever a file names. This one knows the few names of [`Global::named`] and makes data
//! of them; any other name is an error. Values lie in one list and refer to each other by index, so neither deep nesting
//! nor cycles cost more than the bytes that describe them.

use std::collections::BTreeMap;

/// Why a pickle is not read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Refusal {
    /// It names something that is not plain data.
    Name(String),
    /// An instruction that state dicts do not use.
    Instruction(u8),
    /// It is damaged or of another kind.
    Malformed(&'static str),
}

type Result<T> = std::result::Result<T, Refusal>;

/// Index of a value in a [`Heap`].
pub(super) type Id = usize;

/// The element type of a storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ElementType {
    F64,
    F32,
    F16,
    Bf16,
    I64,
    I32,
    I16,
    I8,
    U8,
    Bool,
}

impl ElementType {
    /// Bytes of one element.
    pub(super) const fn bytes(self) -> usize {
        match self {
            Self::F64 | Self::I64 => 8,
            Self::F32 | Self::I32 => 4,
            Self::F16 | Self::Bf16 | Self::I16 => 2,
            Self::I8 | Self::U8 | Self::Bool => 1,
        }
    }
}

/// A name that a pickle may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Global {
    OrderedDict,
    RebuildTensor,
    RebuildParameter,
    Size,
    Storage(ElementType),
}

impl Global {
    /// The list of allowed names.
    fn named(module: &str, name: &str) -> Option<Self> {
        use ElementType as E;
        Some(match (module, name) {
            ("collections", "OrderedDict") => Self::OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2") => Self::RebuildTensor,
            ("torch._utils", "_rebuild_parameter") => Self::RebuildParameter,
            ("torch", "Size") => Self::Size,
            ("torch", "DoubleStorage") => Self::Storage(E::F64),
            ("torch", "FloatStorage") => Self::Storage(E::F32),
            ("torch", "HalfStorage") => Self::Storage(E::F16),
            ("torch", "BFloat16Storage") => Self::Storage(E::Bf16),
            ("torch", "LongStorage") => Self::Storage(E::I64),
            ("torch", "IntStorage") => Self::Storage(E::I32),
            ("torch", "ShortStorage") => Self::Storage(E::I16),
            ("torch", "CharStorage") => Self::Storage(E::I8),
            ("torch", "ByteStorage") => Self::Storage(E::U8),
            ("torch", "BoolStorage") => Self::Storage(E::Bool),
            _ => return None,
        })
    }
}

/// Where the elements of tensors lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Storage {
    pub element: ElementType,
    /// Its name in the file.
    pub key: String,
    /// Number of its elements.
    pub len: usize,
}

/// A view of a storage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TensorView {
    pub storage: Storage,
    /// Index of its first element.
    pub offset: usize,
    pub shape: Vec<usize>,
    /// Steps between neighbours along each dimension, elements.
    pub strides: Vec<usize>,
}

/// A value. What a state dict does not need is read and forgotten ([`Value::Other`]).
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    None,
    Bool(bool),
    Int(i64),
    Text(String),
    Other,
    Tuple(Vec<Id>),
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    Global(Global),
    Storage(Storage),
    Tensor(TensorView),
}

/// All values of a pickle.
#[derive(Debug, Default)]
pub(super) struct Heap {
    values: Vec<Value>,
}

impl Heap {
    pub(super) fn get(&self, id: Id) -> &Value {
        self.values.get(id).unwrap_or(&Value::None)
    }

    /// Number of values; their indices are below it.
    pub(super) fn len(&self) -> usize {
        self.values.len()
    }

    fn add(&mut self, value: Value) -> Id {
        self.values.push(value);
        self.values.len() - 1
    }

    pub(super) fn text(&self, id: Id) -> Option<&str> {
        match self.get(id) {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    pub(super) fn size(&self, id: Id) -> Option<usize> {
        match self.get(id) {
            Value::Int(number) => usize::try_from(*number).ok(),
            _ => None,
        }
    }

    fn sizes(&self, id: Id) -> Option<Vec<usize>> {
        let items = match self.get(id) {
            Value::Tuple(items) | Value::List(items) => items,
            _ => return None,
        };
        items.iter().map(|item| self.size(*item)).collect()
    }
}

/// Reads one pickle from the beginning of `bytes`. Returns its values, the result's index, and its length in bytes.
pub(super) fn read(bytes: &[u8]) -> Result<(Heap, Id, usize)> {
    let mut machine = Machine {
        bytes,
        at: 0,
        heap: Heap::default(),
        stack: Vec::new(),
        marks: Vec::new(),
        memo: BTreeMap::new(),
    };
    loop {
        let op = machine.byte()?;
        if op == b'.' {
            let root = machine.pop()?;
            return Ok((machine.heap, root, machine.at));
        }
        machine.step(op)?;
    }
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    heap: Heap,
    stack: Vec<Id>,
    /// Heights of the stack at its marks.
    marks: Vec<usize>,
    memo: BTreeMap<usize, Id>,
}

const CUT: Refusal = Refusal::Malformed("it ends too early");
const STACK: Refusal = Refusal::Malformed("an instruction finds no value to work on");

impl<'a> Machine<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8]> {
        let end = self.at.checked_add(len).ok_or(CUT)?;
        let part = self.bytes.get(self.at..end).ok_or(CUT)?;
        self.at = end;
        Ok(part)
    }

    fn byte(&mut self) -> Result<u8> {
        Ok(self.take(1)?[0])
    }

    /// A little-endian number of `len` bytes, at most 8.
    fn number(&mut self, len: usize) -> Result<usize> {
        let part = self.take(len)?;
        let number = part
            .iter()
            .rev()
            .fold(0u64, |n, byte| n << 8 | u64::from(*byte));
        usize::try_from(number).map_err(|_| CUT)
    }

    fn line(&mut self) -> Result<&'a str> {
        let rest = self.bytes.get(self.at..).ok_or(CUT)?;
        let len = rest.iter().position(|byte| *byte == b'\n').ok_or(CUT)?;
        let line = self.take(len)?;
        self.at += 1;
        std::str::from_utf8(line).map_err(|_| Refusal::Malformed("a name is not UTF-8"))
    }

    fn push(&mut self, value: Value) {
        let id = self.heap.add(value);
        self.stack.push(id);
    }

    fn pop(&mut self) -> Result<Id> {
        let floor = self.marks.last().copied().unwrap_or(0);
        if self.stack.len() <= floor {
            return Err(STACK);
        }
        self.stack.pop().ok_or(STACK)
    }

    fn top(&self) -> Result<Id> {
        self.stack.last().copied().ok_or(STACK)
    }

    /// The values above the newest mark, which goes.
    fn above_mark(&mut self) -> Result<Vec<Id>> {
        let mark = self.marks.pop().ok_or(STACK)?;
        if mark > self.stack.len() {
            return Err(STACK);
        }
        Ok(self.stack.split_off(mark))
    }

    fn text(&mut self, len: usize) -> Result<()> {
        let bytes = self.take(len)?;
        let text = String::from_utf8_lossy(bytes).into_owned();
        self.push(Value::Text(text));
        Ok(())
    }

    /// An integer in two's complement; one beyond 64 bits is forgotten.
    fn long(&mut self, len: usize) -> Result<()> {
        let bytes = self.take(len)?;
        let negative = bytes.last().is_some_and(|byte| byte & 0x80 != 0);
        let value = if len <= 8 {
            let mut filled = if negative { [0xff; 8] } else { [0; 8] };
            filled[..len].copy_from_slice(bytes);
            Value::Int(i64::from_le_bytes(filled))
        } else {
            Value::Other
        };
        self.push(value);
        Ok(())
    }

    fn step(&mut self, op: u8) -> Result<()> {
        match op {
            0x80 => drop(self.byte()?),  // PROTO
            0x95 => drop(self.take(8)?), // FRAME
            b'(' => self.marks.push(self.stack.len()),
            b'0' => drop(self.pop()?),
            b'1' => drop(self.above_mark()?),
            b'2' => self.stack.push(self.top()?),
            b'N' => self.push(Value::None),
            0x88 => self.push(Value::Bool(true)),
            0x89 => self.push(Value::Bool(false)),
            b'J' => {
                let number = self.number(4)? as u32;
                self.push(Value::Int(i64::from(number as i32)));
            }
            b'K' => self.small_int(1)?,
            b'M' => self.small_int(2)?,
            0x8a => {
                let len = self.number(1)?;
                self.long(len)?;
            }
            0x8b => {
                let len = self.number(4)?;
                self.long(len)?;
            }
            b'G' => {
                self.take(8)?;
                self.push(Value::Other); // a float
            }
            b'X' | b'T' => self.sized_text(4)?,
            0x8c | b'U' => self.sized_text(1)?,
            0x8d => self.sized_text(8)?,
            b'B' | b'C' | 0x8e => {
                let len = match op {
                    b'B' => 4,
                    b'C' => 1,
                    _ => 8,
                };
                let len = self.number(len)?;
                self.take(len)?;
                self.push(Value::Other);
            }
            b')' | b't' | 0x85..=0x87 | b']' | b'l' | b'a' | b'e' | b'}' | b'd' | b's' | b'u' => {
                self.container(op)?;
            }
            b'q' | b'r' | 0x94 | b'h' | b'j' => self.remember(op)?,
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.global(module, name)?;
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let texts = (self.heap.text(module), self.heap.text(name));
                let (Some(module), Some(name)) = texts else {
                    return Err(Refusal::Malformed("a name that is no text"));
                };
                let (module, name) = (module.to_owned(), name.to_owned());
                self.global(&module, &name)?;
            }
            b'Q' => self.persistent()?,
            b'R' | 0x81 => self.call()?,
            b'b' => {
                // State of an OrderedDict: PyTorch keeps versions there.
                self.pop()?;
                if !matches!(self.heap.get(self.top()?), Value::Dict(_)) {
                    return Err(Refusal::Malformed("state for a value that has none"));
                }
            }
            other => return Err(Refusal::Instruction(other)),
        }
        Ok(())
    }

    fn small_int(&mut self, len: usize) -> Result<()> {
        let number = self.number(len)?;
        self.push(Value::Int(number as i64));
        Ok(())
    }

    fn sized_text(&mut self, len: usize) -> Result<()> {
        let len = self.number(len)?;
        self.text(len)
    }

    fn container(&mut self, op: u8) -> Result<()> {
        match op {
            b')' => self.push(Value::Tuple(Vec::new())),
            b']' => self.push(Value::List(Vec::new())),
            b'}' => self.push(Value::Dict(Vec::new())),
            b't' => {
                let items = self.above_mark()?;
                self.push(Value::Tuple(items));
            }
            b'l' => {
                let items = self.above_mark()?;
                self.push(Value::List(items));
            }
            b'd' => {
                let items = pairs(&self.above_mark()?)?;
                self.push(Value::Dict(items));
            }
            0x85..=0x87 => {
                let mut items = Vec::new();
                for _ in 0x85..=op {
                    items.push(self.pop()?);
                }
                items.reverse();
                self.push(Value::Tuple(items));
            }
            b'a' | b'e' => {
                let items = match op {
                    b'a' => vec![self.pop()?],
                    _ => self.above_mark()?,
                };
                let list = self.top()?;
                match self.heap.values.get_mut(list) {
                    Some(Value::List(list)) => list.extend(items),
                    _ => return Err(Refusal::Malformed("items for a value that is no list")),
                }
            }
            _ => {
                let items = match op {
                    b's' => {
                        let value = self.pop()?;
                        vec![self.pop()?, value]
                    }
                    _ => self.above_mark()?,
                };
                let (dict, items) = (self.top()?, pairs(&items)?);
                match self.heap.values.get_mut(dict) {
                    Some(Value::Dict(dict)) => dict.extend(items),
                    _ => return Err(Refusal::Malformed("entries for a value that is no dict")),
                }
            }
        }
        Ok(())
    }

    fn remember(&mut self, op: u8) -> Result<()> {
        let key = match op {
            b'q' | b'h' => self.number(1)?,
            b'r' | b'j' => self.number(4)?,
            _ => self.memo.len(),
        };
        if matches!(op, b'h' | b'j') {
            let known = self.memo.get(&key).copied();
            let missing = Refusal::Malformed("it refers to a value that it has not made");
            self.stack.push(known.ok_or(missing)?);
        } else {
            let top = self.top()?;
            self.memo.insert(key, top);
        }
        Ok(())
    }

    fn global(&mut self, module: &str, name: &str) -> Result<()> {
        let known = Global::named(module, name);
        let global = known.ok_or_else(|| Refusal::Name(format!("{module}.{name}")))?;
        self.push(Value::Global(global));
        Ok(())
    }

    /// A reference to a storage: `("storage", type, key, location, length)`.
    fn persistent(&mut self) -> Result<()> {
        const WRONG: Refusal = Refusal::Malformed("a reference that is no storage");
        let id = self.pop()?;
        let Value::Tuple(items) = self.heap.get(id) else {
            return Err(WRONG);
        };
        let &[kind, element, key, _, len, ..] = items.as_slice() else {
            return Err(WRONG);
        };
        let is_view = items
            .get(5)
            .is_some_and(|view| *self.heap.get(*view) != Value::None);
        let heap = &self.heap;
        let parts = (
            heap.text(kind),
            heap.get(element),
            heap.text(key),
            heap.size(len),
        );
        let (Some("storage"), Value::Global(Global::Storage(element)), Some(key), Some(len)) =
            parts
        else {
            return Err(WRONG);
        };
        if is_view {
            return Err(Refusal::Malformed(
                "a storage that is a view of another (PyTorch 0.3)",
            ));
        }
        let storage = Storage {
            element: *element,
            key: key.to_owned(),
            len,
        };
        self.push(Value::Storage(storage));
        Ok(())
    }

    fn call(&mut self) -> Result<()> {
        let (arguments, callee) = (self.pop()?, self.pop()?);
        let Value::Global(global) = *self.heap.get(callee) else {
            return Err(Refusal::Malformed("a call of a value that is no function"));
        };
        let Value::Tuple(arguments) = self.heap.get(arguments).clone() else {
            return Err(Refusal::Malformed("a call without arguments"));
        };
        const WRONG: Refusal = Refusal::Malformed("a call with other arguments than PyTorch's");
        match (global, arguments.as_slice()) {
            (Global::OrderedDict, []) => self.push(Value::Dict(Vec::new())),
            (Global::OrderedDict, [items]) => {
                let Value::List(items) = self.heap.get(*items) else {
                    return Err(WRONG);
                };
                let pair = |item: &Id| match self.heap.get(*item) {
                    Value::Tuple(pair) | Value::List(pair) => match pair.as_slice() {
                        [key, value] => Some((*key, *value)),
                        _ => None,
                    },
                    _ => None,
                };
                let items = items
                    .iter()
                    .map(pair)
                    .collect::<Option<Vec<_>>>()
                    .ok_or(WRONG)?;
                self.push(Value::Dict(items));
            }
            (Global::Size | Global::RebuildParameter, [first, ..]) => self.stack.push(*first),
            (Global::RebuildTensor, [storage, offset, shape, strides, ..]) => {
                let heap = &self.heap;
                let parts = (
                    heap.get(*storage),
                    heap.size(*offset),
                    heap.sizes(*shape),
                    heap.sizes(*strides),
                );
                let (Value::Storage(storage), Some(offset), Some(shape), Some(strides)) = parts
                else {
                    return Err(WRONG);
                };
                let view = TensorView {
                    storage: storage.clone(),
                    offset,
                    shape,
                    strides,
                };
                self.push(Value::Tensor(view));
            }
            _ => return Err(WRONG),
        }
        Ok(())
    }
}

fn pairs(items: &[Id]) -> Result<Vec<(Id, Id)>> {
    let (pairs, rest) = items.as_chunks::<2>();
    match rest {
        [] => Ok(pairs.iter().map(|[key, value]| (*key, *value)).collect()),
        _ => Err(Refusal::Malformed("a key without a value")),
    }
}
