//! Kernels that are compiled and loaded once for each GPU and number format.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use tch::{Device, Kind, Tensor};

use crate::libtorch::{LibtorchError, compile};

/// The source that all kernels begin with.
const PRELUDE: &str = include_str!("prelude.cu");

/// Compiles kernels for tensors of this number format to machine code for the thread's current GPU.
pub(super) fn compile_for(kind: Kind, source: &str) -> Result<Vec<u8>, LibtorchError> {
    let format = match kind {
        Kind::BFloat16 => "BF16",
        Kind::Half => "FP16",
        _ => "FP32",
    };
    compile(&format!("#define {format}\n{PRELUDE}{source}"))
}

/// The kernels that were loaded, or `None` if that failed, by GPU and number format. Loaded code belongs to
/// the process, and the threads of one GPU share it.
#[derive(Debug)]
pub(super) struct PerDevice<K>(Mutex<HashMap<(usize, Kind), Option<K>>>);

impl<K> Default for PerDevice<K> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Copy> PerDevice<K> {
    /// Returns the kernels for tensors like this one. The first call loads them, and must not be part of a
    /// graph's recording.
    pub(super) fn get(
        &self,
        like: &Tensor,
        load: impl FnOnce(Kind) -> Result<K, LibtorchError>,
    ) -> Option<K> {
        let (Device::Cuda(index), kind) = (like.device(), like.kind()) else { return None };
        if !matches!(kind, Kind::BFloat16 | Kind::Half | Kind::Float) {
            return None;
        }
        let mut loaded = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *loaded.entry((index, kind)).or_insert_with(|| {
            let kernels = load(kind);
            if let Err(error) = &kernels {
                tracing::warn!(%error, device = index, "without kernels of our own: libtorch's take their place");
            }
            kernels.ok()
        })
    }
}
