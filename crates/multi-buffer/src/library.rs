//! The library, as it is loaded, and its two operations.

use crate::{CrtKey, LANES, Scratch, key::Part};
use std::{
    ffi::{CStr, c_char, c_int, c_void},
    fmt,
    path::{Path, PathBuf},
    ptr::NonNull,
};
use zeroize::Zeroizing;

/// The library cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// There is no such library.
    #[error("{path} is no library that can be loaded: {why}")]
    Open {
        /// Where.
        path: PathBuf,
        /// What the system says.
        why: String,
    },
    /// It is another one.
    #[error(
        "{path} is not crypto_mb of Intel's Cryptography Primitives Library, or older than its version 1.1: it has no {symbol}"
    )]
    Other {
        /// Where.
        path: PathBuf,
        /// What it has not.
        symbol: &'static str,
    },
    /// The processor lacks the instructions.
    #[error("this processor has no AVX-512 IFMA, which {version} needs")]
    Processor {
        /// The library's name and version.
        version: String,
    },
}

/// `mbxVersion`.
#[repr(C)]
struct Version {
    numbers: [c_int; 3],
    cpu: [c_char; 4],
    name: *const c_char,
    built: *const c_char,
    text: *const c_char,
}

type GetVersion = unsafe extern "C" fn() -> *const Version;
type GetAlgorithm = unsafe extern "C" fn(algorithm: c_int) -> u64;
type GetMethod = unsafe extern "C" fn(bits: c_int) -> *const c_void;
type BufferLen = unsafe extern "C" fn(method: *const c_void) -> c_int;
type Bytes = *const *const u8;
type BytesMut = *const *mut u8;
type Words = *const *const u64;
/// `mbx_rsa_private_crt_mb8`: from, to, p, q, dp, dq, iq.
type PrivateCrt = unsafe extern "C" fn(
    Bytes,
    BytesMut,
    Words,
    Words,
    Words,
    Words,
    Words,
    c_int,
    *const c_void,
    *mut u8,
) -> u32;
/// `mbx_rsa_public_mb8`: from, to, n.
type Public = unsafe extern "C" fn(Bytes, BytesMut, Words, c_int, *const c_void, *mut u8) -> u32;

/// `enum MBX_ALGO`, of the sizes that are offered.
const ALGORITHMS: [(u32, c_int); 3] = [(2048, 1), (3072, 2), (4096, 3)];
/// `MBX_WIDTH_MB8`.
const EIGHT_AT_ONCE: u64 = 8;

/// How keys of one size are dealt with.
struct Method {
    bits: u32,
    private: NonNull<c_void>,
    public: NonNull<c_void>,
    buffer_len: usize,
}

// SAFETY: both are of constants in the library, which nothing changes and which live as long as it.
#[expect(unsafe_code, reason = "pointers to constants")]
unsafe impl Send for Method {}
// SAFETY: as above.
#[expect(unsafe_code, reason = "pointers to constants")]
unsafe impl Sync for Method {}

/// `crypto_mb`, loaded. It keeps nothing between two calls.
pub struct Library {
    version: String,
    methods: Vec<Method>,
    private: PrivateCrt,
    public: Public,
    /// What the functions and the methods are in.
    _library: libloading::Library,
}

/// One operation.
pub struct Lane<'a> {
    /// Whose.
    pub key: &'a CrtKey,
    /// A number below the modulus, as long as it, with its most significant byte first.
    pub input: &'a [u8],
}

impl Library {
    /// Loads the library, which runs code of it: the path is the operator's.
    ///
    /// # Errors
    /// See [`LoadError`].
    pub fn load(path: &Path) -> Result<Self, LoadError> {
        let open = |why: libloading::Error| LoadError::Open { path: path.to_owned(), why: why.to_string() };
        // SAFETY: the operator names the library as they name the program, and its initializers are the C runtime's.
        #[expect(unsafe_code, reason = "a library in C")]
        let library = unsafe { libloading::Library::new(path) }.map_err(open)?;
        macro_rules! symbol {
            ($name:literal, $kind:ty) => {{
                // SAFETY: the types are those of the library's headers (crypto_mb/rsa.h, version.h, cpu_features.h).
                #[expect(unsafe_code, reason = "a library in C")]
                let found = unsafe { library.get::<$kind>($name.as_bytes()) };
                *found.map_err(|_| LoadError::Other { path: path.to_owned(), symbol: $name })?
            }};
        }
        let private = symbol!("mbx_rsa_private_crt_mb8", PrivateCrt);
        let public = symbol!("mbx_rsa_public_mb8", Public);
        let algorithm = symbol!("mbx_get_algo_info", GetAlgorithm);
        let private_method = symbol!("mbx_RSA_private_crt_Method", GetMethod);
        let public_method = symbol!("mbx_RSA_pub65537_Method", GetMethod);
        let buffer_len = symbol!("mbx_RSA_Method_BufSize", BufferLen);
        let version = text(symbol!("mbx_getversion", GetVersion));

        let mut methods = Vec::new();
        for (bits, number) in ALGORITHMS {
            // SAFETY: takes a number and gives one.
            #[expect(unsafe_code, reason = "a library in C")]
            if unsafe { algorithm(number) } & EIGHT_AT_ONCE != 0 {
                methods.extend(method(bits, private_method, public_method, buffer_len));
            }
        }
        if methods.is_empty() {
            return Err(LoadError::Processor { version });
        }
        Ok(Self { version, methods, private, public, _library: library })
    }

    /// Its name and version, in its own words.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Does the private operation of up to [`LANES`] keys of one size. Answers the result of each, checked with the public half,
    /// and none where that failed, where the library does not take the key, or where the input is not below the modulus.
    pub fn private(&self, scratch: &mut Scratch, lanes: &[Lane<'_>]) -> Vec<Option<Zeroizing<Vec<u8>>>> {
        let none = || lanes.iter().map(|_| None).collect();
        let Some(first) = lanes.first() else { return none() };
        let bits = first.key.bits();
        let same = lanes.iter().all(|lane| lane.key.bits() == bits && lane.key.takes(lane.input));
        let method = self.methods.iter().find(|method| method.bits == bits);
        let (true, Some(method), 1..=LANES) = (same, method, lanes.len()) else { return none() };

        // Lanes that nobody uses do what the first does.
        let lane = |n: usize| lanes.get(n).unwrap_or(first);
        let part = |part: Part| std::array::from_fn(|n| lane(n).key.part(part).as_ptr());
        let inputs: [_; LANES] = std::array::from_fn(|n| lane(n).input.as_ptr());
        let len = first.key.len();
        let mut results: [_; LANES] = std::array::from_fn(|_| Zeroizing::new(vec![0u8; len]));
        let mut checks: [_; LANES] = std::array::from_fn(|_| vec![0u8; len]);
        let (p, q, dp, dq): ([_; LANES], [_; LANES], [_; LANES], [_; LANES]) =
            (part(Part::P), part(Part::Q), part(Part::Dp), part(Part::Dq));
        let (q_inv, n): ([_; LANES], [_; LANES]) = (part(Part::QInv), part(Part::N));
        let to: [_; LANES] = results.each_mut().map(|result| result.as_mut_ptr());
        let back: [_; LANES] = checks.each_mut().map(|check| check.as_mut_ptr());
        let from: [_; LANES] = to.map(<*mut u8>::cast_const);
        let buffer = scratch.room(method.buffer_len);
        let size = bits as c_int;
        // SAFETY: each array has eight pointers. Inputs, results and checks have as many bytes as the modulus, the numbers of a
        // key half as many and the modulus all, as keys of `bits` have; the buffer has what the method asks for. All of them
        // outlive the call, nothing else writes to them, and a result is none of the inputs.
        #[expect(unsafe_code, reason = "a library in C")]
        let done = unsafe {
            (self.private)(
                inputs.as_ptr(),
                to.as_ptr(),
                p.as_ptr(),
                q.as_ptr(),
                dp.as_ptr(),
                dq.as_ptr(),
                q_inv.as_ptr(),
                size,
                method.private.as_ptr(),
                buffer,
            )
        };
        // SAFETY: as above; `n` has the modulus of each.
        #[expect(unsafe_code, reason = "a library in C")]
        let checked = unsafe {
            (self.public)(from.as_ptr(), back.as_ptr(), n.as_ptr(), size, method.public.as_ptr(), buffer)
        };
        scratch.erase();
        // Four bits of each lane; none of them is set where all went well.
        let went_well = done == 0 && checked == 0;
        let rows = lanes.iter().zip(results).zip(checks);
        rows.map(|((lane, result), check)| (went_well && check == lane.input).then_some(result)).collect()
    }
}

impl fmt::Debug for Lane<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lane({:?}, ..)", self.key)
    }
}

/// The library's name and version.
fn text(version: GetVersion) -> String {
    // SAFETY: gives a pointer to a constant of the library, or none.
    #[expect(unsafe_code, reason = "a library in C")]
    let version = unsafe { version() };
    // SAFETY: as above.
    #[expect(unsafe_code, reason = "a library in C")]
    let version = unsafe { version.as_ref() };
    let Some(version) = version.filter(|v| !v.text.is_null()) else { return "crypto_mb".to_owned() };
    // SAFETY: a constant string, with its end.
    #[expect(unsafe_code, reason = "a library in C")]
    let text = unsafe { CStr::from_ptr(version.text) };
    text.to_string_lossy().into_owned()
}

/// How the library deals with keys of one size, if it does.
fn method(bits: u32, private: GetMethod, public: GetMethod, buffer_len: BufferLen) -> Option<Method> {
    let size = c_int::try_from(bits).ok()?;
    // SAFETY: takes a number, and gives a pointer to a constant of the library, or none.
    #[expect(unsafe_code, reason = "a library in C")]
    let private = NonNull::new(unsafe { private(size) }.cast_mut())?;
    // SAFETY: as above.
    #[expect(unsafe_code, reason = "a library in C")]
    let public = NonNull::new(unsafe { public(size) }.cast_mut())?;
    let len = |method: NonNull<c_void>| {
        // SAFETY: takes what one of the two above gave.
        #[expect(unsafe_code, reason = "a library in C")]
        usize::try_from(unsafe { buffer_len(method.as_ptr()) }).ok()
    };
    Some(Method { bits, private, public, buffer_len: len(private)?.max(len(public)?) })
}

impl fmt::Debug for Library {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Library({})", self.version)
    }
}
