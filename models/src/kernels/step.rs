//! Kernels that take a single row through the layers of a decoder, as fast as the memory that holds the
//! weights.
//!
//! Their eager twin is the model's own step by libtorch's operations, which runs where these kernels cannot:
//! see [`StepKernels::of`] and [`RowWeights::fits`].

use std::sync::LazyLock;

use tch::{Kind, Tensor};

use super::loaded::{PerDevice, compile_for};
use super::norm::RmsNorm;
use super::{in_packs, int, pack, small};
use crate::libtorch::{Argument, Kernel, KernelLaunch, LibtorchError, compute_capability, multiprocessors};

#[cfg(test)]
mod tests;

const SOURCE: &str = include_str!("step.cu");
/// The compute capabilities of GPUs that have the bulk copy engine, programmatic dependent launch, and the
/// shared memory that the rings take (those of 12.x have 99 KiB a block).
const CAPABILITIES: std::ops::Range<u32> = 90..120;

// These constants must agree with those in step.cu.
const THREADS: u32 = 256;
const WARPS: i64 = 8;
const STAGES: i64 = 4;
const CHUNK_BYTES: i64 = 2048;
const SPLIT: i64 = 64;
const GROUP_MAX: i64 = 8;
const ATTEND_WARPS: i64 = 8;

/// The largest size of a row in bytes. A block has 227 KiB of shared memory; the row goes into what the rings
/// of its warps leave.
const ROW_BYTES_MAX: i64 = 64 * 1024;
/// The shared memory that a kernel may have without opting in, less the little that it declares itself.
/// Longer caches would take more.
const SHARED_BYTES_MAX: i64 = 47 * 1024;

/// The numbers of lanes that may hold a head.
const LANES: [i64; 4] = [4, 8, 16, 32];

/// The kernels of one GPU and number format.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StepKernels {
    /// The plain and the gated product, for weights in the row's number format.
    products: [Kernel; 2],
    /// The plain and the gated product, for weights in fp8.
    fp8_products: [Kernel; 2],
    attend: [Kernel; LANES.len()],
    multiprocessors: u32,
}

static LOADED: LazyLock<PerDevice<StepKernels>> = LazyLock::new(PerDevice::default);

impl StepKernels {
    /// Returns the kernels for tensors like this one, on a GPU that has what they need. The first call
    /// compiles them, and must not be part of a graph's recording.
    pub(crate) fn of(like: &Tensor) -> Option<Self> {
        let tch::Device::Cuda(index) = like.device() else { return None };
        compute_capability(index).ok().filter(|capability| CAPABILITIES.contains(capability))?;
        LOADED.get(like, Self::load)
    }

    fn load(kind: Kind) -> Result<Self, LibtorchError> {
        let code = compile_for(kind, SOURCE)?;
        let kernel = |name: &str| Kernel::load(&code, name);
        let [four, eight, sixteen, all] = LANES.map(|lanes| kernel(&format!("attend_row_{lanes}")));
        Ok(Self {
            products: [kernel("row_product")?, kernel("row_product_gated")?],
            fp8_products: [kernel("row_product_fp8")?, kernel("row_product_gated_fp8")?],
            attend: [four?, eight?, sixteen?, all?],
            multiprocessors: multiprocessors()?,
        })
    }

    /// Computes weights · norm(x) + bias, where `x` \[inputs\] is contiguous and [`RowWeights::fits`] its
    /// number format.
    pub(crate) fn product(
        self,
        weights: RowWeights<'_>,
        x: &Tensor,
        norm: Option<&RmsNorm>,
        to: RowTo<'_>,
    ) -> Result<(), LibtorchError> {
        let size = weights.values.size();
        let (rows, inputs) = (size[0], size[1]);
        let is_gated = matches!(to, RowTo::Gated(_));
        let kernels = if weights.scales.is_some() { self.fp8_products } else { self.products };
        let (out, residual, wide) = match to {
            RowTo::Plain(out) | RowTo::Gated(out) => (Some(out), None, None),
            RowTo::AddedTo(sum) => (Some(sum), Some(sum), None),
            RowTo::Wide(wide) => (None, None, Some(wide)),
        };
        let arguments = [
            Argument::Tensor(Some(weights.values)),
            Argument::Tensor(weights.scales),
            Argument::Tensor(Some(x)),
            Argument::Tensor(norm.map(|norm| &norm.weight)),
            Argument::Tensor(weights.bias),
            Argument::Tensor(residual),
            Argument::Tensor(out),
            Argument::Tensor(wide),
            int(inputs),
            int(if is_gated { rows / 2 } else { rows }),
            Argument::Float(norm.map_or(0.0, |norm| norm.eps as f32)),
        ];
        let how = KernelLaunch {
            blocks: self.multiprocessors,
            threads: THREADS,
            shared_bytes: small(WARPS * STAGES * 2 * CHUNK_BYTES + row_bytes(inputs, x.kind())),
            begins_early: true,
        };
        kernels[usize::from(is_gated)].launch(how, &arguments)
    }

    /// Computes the attention of one position to itself and all positions before it; see [`AttendRow`].
    pub(crate) fn attend(self, call: &AttendRow<'_>, scratch: &AttendScratch) -> Result<(), LibtorchError> {
        let sizes = scratch.sizes;
        let lanes = sizes.head_width / pack(call.row.kind());
        let kernel = LANES.iter().position(|some| *some == lanes).map(|place| self.attend[place]);
        let kernel = kernel.ok_or_else(|| LibtorchError(format!("no attention by {lanes} lanes")))?;
        let [query_norm, key_norm] = call.norms;
        let arguments = [
            Argument::Tensor(Some(call.row)),
            Argument::Tensor(Some(&query_norm.weight)),
            Argument::Tensor(Some(&key_norm.weight)),
            Argument::Tensor(Some(call.angles.0)),
            Argument::Tensor(Some(call.angles.1)),
            Argument::Tensor(Some(call.position)),
            Argument::Tensor(Some(call.kept.0)),
            Argument::Tensor(Some(call.kept.1)),
            Argument::Tensor(Some(&scratch.parts)),
            Argument::Tensor(Some(&scratch.norms)),
            Argument::Tensor(Some(&scratch.counters)),
            Argument::Tensor(Some(call.out)),
            int(sizes.key_heads),
            int(sizes.group()),
            int(sizes.capacity),
            Argument::Float(query_norm.eps as f32),
        ];
        let how = KernelLaunch {
            blocks: small(sizes.key_heads * sizes.splits()),
            threads: small(ATTEND_WARPS * 32),
            shared_bytes: small(sizes.shared_bytes()),
            begins_early: true,
        };
        kernel.launch(how, &arguments)
    }
}

fn row_bytes(inputs: i64, kind: Kind) -> i64 {
    inputs * kind.elt_size_in_bytes() as i64
}

/// The weights and bias that a row is multiplied by.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RowWeights<'a> {
    /// The weights, [outputs, inputs], in the row's number format or in e4m3.
    pub(crate) values: &'a Tensor,
    /// The scales of weights in e4m3, [outputs, 1] in fp32.
    pub(crate) scales: Option<&'a Tensor>,
    /// The bias, \[outputs\].
    pub(crate) bias: Option<&'a Tensor>,
}

impl RowWeights<'_> {
    /// Returns whether the kernels support these weights with a row of this number format.
    pub(crate) fn fits(&self, kind: Kind) -> bool {
        let is_known = if self.scales.is_some() {
            self.values.kind() == Kind::Float8e4m3fn
        } else {
            self.values.kind() == kind
        };
        let inputs = self.values.size()[1];
        is_known
            && self.values.is_contiguous()
            && in_packs(inputs, self.values.kind())
            && row_bytes(inputs, kind) <= ROW_BYTES_MAX
    }
}

/// The destination of a product.
#[derive(Debug, Clone, Copy)]
pub(crate) enum RowTo<'a> {
    /// The product is written, \[outputs\].
    Plain(&'a Tensor),
    /// The product is added to these values, \[outputs\].
    AddedTo(&'a Tensor),
    /// up · silu(gate) is written, \[outputs / 2\]; the weights are those of up, followed by those of gate.
    Gated(&'a Tensor),
    /// The product is written in fp32, \[outputs\], but rounded to the row's number format.
    Wide(&'a Tensor),
}

/// The sizes of attention over a cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct AttendSizes {
    pub(crate) heads: i64,
    pub(crate) key_heads: i64,
    pub(crate) head_width: i64,
    pub(crate) capacity: i64,
}

impl AttendSizes {
    /// Returns the number of heads of queries that share keys and values.
    fn group(self) -> i64 {
        self.heads / self.key_heads
    }

    fn splits(self) -> i64 {
        (self.capacity + SPLIT - 1) / SPLIT
    }

    fn shared_bytes(self) -> i64 {
        let floats =
            self.group() * (self.head_width + SPLIT + (ATTEND_WARPS * self.head_width).max(self.splits()));
        floats * Kind::Float.elt_size_in_bytes() as i64
    }

    /// Returns whether the kernel supports these sizes in this number format.
    pub(crate) fn fit(self, kind: Kind) -> bool {
        in_packs(self.head_width, kind)
            && LANES.contains(&(self.head_width / pack(kind)))
            && self.group() <= GROUP_MAX
            && self.shared_bytes() <= SHARED_BYTES_MAX
    }
}

/// The inputs and outputs of one position's attention.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AttendRow<'a> {
    /// The heads of queries, followed by those of keys and those of values, before norm and rotation.
    pub(crate) row: &'a Tensor,
    /// The norms of queries and keys.
    pub(crate) norms: [&'a RmsNorm; 2],
    /// The cosines and sines of all positions, [capacity, head width] each.
    pub(crate) angles: (&'a Tensor, &'a Tensor),
    /// The position, \[1\], which is the same for all calls of a step.
    pub(crate) position: &'a Tensor,
    /// The keys and values of this layer, [.., key heads, capacity, head width]; those of the position are
    /// written.
    pub(crate) kept: (&'a Tensor, &'a Tensor),
    /// The result, \[heads · head width\].
    pub(crate) out: &'a Tensor,
}

/// Scratch memory by which the blocks of the attention exchange their partial results.
#[derive(Debug)]
pub(crate) struct AttendScratch {
    sizes: AttendSizes,
    parts: Tensor,
    norms: Tensor,
    counters: Tensor,
}

impl AttendScratch {
    pub(crate) fn new(sizes: AttendSizes, device: tch::Device) -> Self {
        let each = sizes.splits() * sizes.heads;
        let floats = |count: i64| Tensor::zeros([count], (Kind::Float, device));
        Self {
            sizes,
            parts: floats(each * sizes.head_width),
            norms: floats(each * 2),
            counters: Tensor::zeros([sizes.key_heads], (Kind::Int, device)),
        }
    }
}
