//! One decode step of a text, by libtorch's operations or, where the model and the GPU allow it, by custom
//! kernels.

use std::cell::RefCell;

use tch::{Kind, Tensor};

use super::text::{Angles, Layer, TextModel};
use crate::ModelError;
use crate::generation::greedy::{DecodeBuffers, DecodeStep};
use crate::kernels::step::{AttendRow, AttendScratch, AttendSizes, RowTo, StepKernels};
use crate::libtorch::LibtorchError;
use crate::nn::blocks::QkNorm;
use crate::nn::layers::Activation;

/// The buffers of a text that is being generated.
#[derive(Debug)]
pub(super) struct GreedyText {
    pub(super) buffers: DecodeBuffers,
    /// The rotary angles of all positions.
    angles: Angles,
    /// The buffers of the custom kernels; `None` where a step is made of libtorch's operations.
    kernels: RefCell<Option<StepBuffers>>,
}

impl GreedyText {
    /// Allocates the buffers. `by_kernels` asks for custom kernels where they are available.
    pub(super) fn new(model: &TextModel, capacity: i64, by_kernels: bool) -> Self {
        let sizes = model.sizes();
        let positions = Tensor::arange(capacity, (Kind::Int64, sizes.device));
        let kernels = if by_kernels { StepBuffers::new(model, capacity) } else { None };
        Self {
            buffers: DecodeBuffers::new(&sizes, 1, capacity),
            angles: model.angles(&positions),
            kernels: RefCell::new(kernels),
        }
    }
}

/// A step that generates the next token of a text.
#[derive(Debug, Clone, Copy)]
pub(super) struct Step<'a> {
    pub(super) model: &'a TextModel,
    pub(super) writing: &'a GreedyText,
}

impl DecodeStep for Step<'_> {
    fn buffers(&self) -> &DecodeBuffers {
        &self.writing.buffers
    }

    fn step(&self) -> Result<(), ModelError> {
        let mut kernels = self.writing.kernels.borrow_mut();
        if let Some(by_kernels) = &*kernels {
            match self.by_kernels(by_kernels) {
                Ok(()) => {
                    self.writing.buffers.advance_to_best();
                    return Ok(());
                }
                Err(error) => tracing::warn!(%error, "texts are written without kernels of our own"),
            }
            // The whole step overwrites whatever a part of one has written.
            *kernels = None;
        }
        drop(kernels);
        self.by_operations();
        Ok(())
    }
}

impl Step<'_> {
    fn by_operations(&self) {
        let (model, buffers) = (self.model, &self.writing.buffers);
        let (position, bias) = (buffers.position(), buffers.bias());
        let angles = self.writing.angles.at(position);
        let mut cache = buffers.cache.at(position);
        let embeddings = model.embed(&buffers.token());
        let state = model.layers(embeddings, &angles, Some(&bias), Some(&mut cache), None, &mut |_| {});
        buffers.advance(&model.logits(&model.output(&state.squeeze_dim(1))));
    }

    /// Computes the step by custom kernels as far as the logits; the result is the same but for rounding.
    /// With weights in fp8 it multiplies the row as it is, not quantised.
    fn by_kernels(&self, own: &StepBuffers) -> Result<(), LibtorchError> {
        let (model, buffers, kernels) = (self.model, &self.writing.buffers, own.kernels);
        let scaled = self.writing.angles.scaled.as_ref().unwrap_or(&self.writing.angles.plain);
        let state = model.embed(&buffers.token());
        for (index, layer) in model.layers.iter().enumerate() {
            let angles = if layer.scales_rope { scaled } else { &self.writing.angles.plain };
            let (attention, mlp) = (&layer.attention, &layer.mlp);
            let projection = attention.projection.row_weights();
            kernels.product(projection, &state, Some(&layer.attention_norm), RowTo::Plain(&own.projected))?;
            let attend = AttendRow {
                row: &own.projected,
                norms: [&attention.query_norm, &attention.key_norm],
                angles: (&angles.0, &angles.1),
                position: buffers.position(),
                kept: buffers.cache.layer(index),
                out: &own.attended,
            };
            kernels.attend(&attend, &own.scratch)?;
            kernels.product(attention.output.row_weights(), &own.attended, None, RowTo::AddedTo(&state))?;
            let up_and_gate = mlp.up_and_gate.row_weights();
            kernels.product(up_and_gate, &state, Some(&layer.mlp_norm), RowTo::Gated(&own.inner))?;
            kernels.product(mlp.down.row_weights(), &own.inner, None, RowTo::AddedTo(&state))?;
        }
        kernels.product(model.head.row_weights(), &state, Some(&model.norm), RowTo::Wide(buffers.logits()))
    }
}

impl TextModel {
    /// Compiles the kernels of a step, so that the first text does not wait for them.
    pub(super) fn compile_step(&self) {
        let _kernels = StepKernels::of(&Tensor::empty([0], (self.sizes().kind, self.device())));
    }
}

/// The intermediate results of a step by custom kernels.
#[derive(Debug)]
struct StepBuffers {
    kernels: StepKernels,
    scratch: AttendScratch,
    /// The heads of queries, keys and values.
    projected: Tensor,
    attended: Tensor,
    inner: Tensor,
}

impl StepBuffers {
    /// Allocates the buffers, or returns `None` where some part of the model has no such kernel.
    fn new(model: &TextModel, capacity: i64) -> Option<Self> {
        let first = model.layers.first()?;
        let sizes = AttendSizes {
            heads: first.attention.heads,
            key_heads: first.attention.key_heads,
            head_width: first.attention.head_width,
            capacity,
        };
        let kind = model.sizes().kind;
        let fit = |layer: &Layer| layer.fits_kernels(kind);
        if !(sizes.fit(kind) && model.head.row_weights().fits(kind) && model.layers.iter().all(fit)) {
            return None;
        }
        let vector = |size| Tensor::zeros([size], (kind, model.device()));
        let projected = vector(first.attention.projection.outputs());
        Some(Self {
            kernels: StepKernels::of(&projected)?,
            scratch: AttendScratch::new(sizes, model.device()),
            projected,
            attended: vector(sizes.heads * sizes.head_width),
            inner: vector(first.mlp.up_and_gate.outputs() / 2),
        })
    }
}

impl Layer {
    fn fits_kernels(&self, kind: Kind) -> bool {
        let (attention, mlp) = (&self.attention, &self.mlp);
        let products = [&attention.projection, &attention.output, &mlp.up_and_gate, &mlp.down];
        !self.norm_after
            && attention.norm_over == QkNorm::Head
            && attention.query_norm.eps == attention.key_norm.eps
            && mlp.activation == Activation::Silu
            && products.iter().all(|product| product.row_weights().fits(kind))
    }
}
