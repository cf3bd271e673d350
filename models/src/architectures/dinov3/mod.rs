//! DINOv3 ViT: a self-supervised backbone that answers tasks through trained heads; knows no other
//! architecture.
//!
//! The source is Siméoni et al., "DINOv3", 2025 (arXiv 2508.10104). Tensor names and numerics follow
//! transformers' `modeling_dinov3_vit.py`.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

use concord_policy::ModelOutput;
use serde::Deserialize;
use tch::{Device, Kind, Tensor};

use crate::ModelError;
use crate::architectures::architecture::{Architecture, Capability};
use crate::head::{FeatureKind, FeatureSource, Features, Head, TaskHead};
use crate::image::preprocess::{Pixels, Preprocessor, stack};
use crate::inspect::bench_target::{BenchTarget, POOLED};
use crate::inspect::fixture::Fixture;
use crate::model::{LoadedModelInfo, Model};
use crate::nn::blocks::Mlp;
use crate::nn::encoder::{Encoder, EncoderInputs, Layer};
use crate::nn::layers::{Activation, Linear, PatchEmbedding, size4};
use crate::nn::norm::LayerNorm;
use crate::nn::quantized_linear::QuantLinear;
use crate::options::{HEADS, MC_DROPOUT_PASSES, ModelOptions};
use crate::runtime::cuda_graphs::CudaGraphCache;
use crate::runtime::device::Placement;
use crate::snapshot::folder::Snapshot;
use crate::snapshot::limits::{PATCH_MAX, WIDTH_MAX, check_transformer, in_range};
use crate::snapshot::weights::WeightLoader;
use crate::task::{TaskId, TaskSpec};

pub(crate) const ARCHITECTURE: Architecture = Architecture {
    name: "dinov3",
    model_types: &["dinov3_vit"],
    capabilities: &[Capability::Heads],
    options: &[HEADS, MC_DROPOUT_PASSES],
    fp8: &["layer."],
    load,
};

/// The most grids of patches whose rotary angles are cached. The images of a snapshot have one size; fixtures
/// and other callers add a few.
const ANGLES_MAX: usize = 16;

/// The contents of `config.json`; the defaults are those of transformers' `DINOv3ViTConfig`.
#[derive(Debug, Deserialize)]
#[serde(default)]
struct Config {
    hidden_size: i64,
    intermediate_size: i64,
    num_hidden_layers: i64,
    num_attention_heads: i64,
    num_register_tokens: i64,
    patch_size: i64,
    hidden_act: Activation,
    layer_norm_eps: f64,
    rope_theta: f64,
    query_bias: bool,
    key_bias: bool,
    value_bias: bool,
    proj_bias: bool,
    mlp_bias: bool,
    use_gated_mlp: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            hidden_size: 384,
            intermediate_size: 1536,
            num_hidden_layers: 12,
            num_attention_heads: 6,
            num_register_tokens: 0,
            patch_size: 16,
            hidden_act: Activation::Gelu,
            layer_norm_eps: 1e-5,
            rope_theta: 100.0,
            query_bias: true,
            key_bias: false,
            value_bias: true,
            proj_bias: true,
            mlp_bias: true,
            use_gated_mlp: false,
        }
    }
}

impl Config {
    /// Checks what the layers take for granted: sizes within their limits, and heads that `RoPE` can rotate.
    fn check(&self) -> Result<(), String> {
        in_range("patch_size", self.patch_size, 1..=PATCH_MAX)?;
        in_range("num_register_tokens", self.num_register_tokens, 0..=WIDTH_MAX)?;
        // RoPE rotates pairs of halves for each of two axes.
        const HEAD_MULTIPLE: i64 = 4;
        check_transformer(
            self.hidden_size,
            self.intermediate_size,
            self.num_hidden_layers,
            self.num_attention_heads,
            self.layer_norm_eps,
            HEAD_MULTIPLE,
        )
    }

    fn head_width(&self) -> i64 {
        self.hidden_size / self.num_attention_heads
    }
}

fn load(snapshot: &Snapshot, options: &ModelOptions, place: Placement) -> Result<Box<dyn Model>, ModelError> {
    let mut weights = snapshot.weights(place)?;
    let backbone = Backbone::load(snapshot, &mut weights)?;
    let preprocessor = Preprocessor::load(snapshot)?;
    let patch = backbone.config.patch_size;
    if preprocessor.fixed_size().is_none_or(|(height, width)| height < patch || width < patch) {
        let message = format!("gives no image of one size, at least one patch of {patch} pixels");
        return Err(ModelError::malformed(&snapshot.path("preprocessor_config.json"), message));
    }
    Ok(Box::new(Dinov3 {
        backbone,
        info: LoadedModelInfo { parameters: weights.finish()?, preprocessor, placement: place },
        folder: snapshot.folder().to_owned(),
        heads: HashMap::new(),
        mc_dropout_passes: options.mc_dropout_passes(),
        graphs: options.cuda_graphs(place),
    }))
}

/// A loaded DINOv3: the backbone, and the heads of the prepared tasks.
#[derive(Debug)]
struct Dinov3 {
    backbone: Backbone,
    info: LoadedModelInfo,
    /// The snapshot's folder, which the paths of heads are relative to.
    folder: PathBuf,
    heads: HashMap<TaskId, TaskHead>,
    /// The number of Monte Carlo dropout passes through a head; 0 runs heads without dropout.
    mc_dropout_passes: usize,
    /// The CUDA graphs of the backbone.
    graphs: CudaGraphCache,
}

impl Dinov3 {
    /// Returns the backbone's last hidden state after the final norm,
    /// [batch, 1 + registers + patches, hidden], of pixels [batch, 3, height, width].
    fn output(&self, pixels: &Tensor) -> Result<Tensor, ModelError> {
        let outputs = self.graphs.run(&[pixels], &[], |inputs| vec![self.backbone.output(&inputs[0])])?;
        outputs.into_iter().next().ok_or(ModelError::NotPrepared)
    }

    /// Computes the features of images, in fp32.
    fn features_of(&self, images: &[&Pixels]) -> Result<Features, ModelError> {
        let output = self.output(&stack(images, self.info.placement.device))?.to_kind(Kind::Float);
        Ok(self.backbone.features(&output))
    }
}

impl Model for Dinov3 {
    fn info(&self) -> &LoadedModelInfo {
        &self.info
    }

    fn prepare(&mut self, id: TaskId, task: &TaskSpec) -> Result<(), ModelError> {
        let (hidden, place) = (self.backbone.config.hidden_size, self.info.placement);
        let head = TaskHead::load(&self.folder, task, hidden, self.mc_dropout_passes, place)?;
        self.heads.insert(id, head);
        Ok(())
    }

    fn forget(&mut self, id: TaskId) {
        self.heads.remove(&id);
    }

    fn classify(&self, id: TaskId, images: &[&Pixels]) -> Result<Vec<ModelOutput>, ModelError> {
        let head = self.heads.get(&id).ok_or(ModelError::NotPrepared)?;
        if images.is_empty() {
            return Ok(Vec::new());
        }
        head.scores(&self.features_of(images)?)
    }

    fn feature_source(&self) -> Option<&dyn FeatureSource> {
        Some(self)
    }

    fn bench_targets(&self, images: &[&Pixels], _: usize) -> Result<Vec<BenchTarget<'_>>, ModelError> {
        let pixels = stack(images, self.info.placement.device);
        let pooled = move || {
            let output = self.output(&pixels)?;
            Ok(self.backbone.features(&output).cls)
        };
        Ok(vec![BenchTarget::new(POOLED, pooled)])
    }

    fn parity_outputs(&self, fixture: &Fixture) -> Result<BTreeMap<String, Tensor>, ModelError> {
        let mut outputs = BTreeMap::new();
        let images = fixture.images(&["landscape", "portrait"], &self.info.preprocessor)?;
        let pixels = stack(&images.iter().collect::<Vec<_>>(), Device::Cpu);
        outputs.insert("pixel_values".to_owned(), pixels);

        let (rope_cos, rope_sin) = {
            let (_, _, height, width) = size4(&fixture.input("pixel_values")?);
            self.backbone
                .rope(height / self.backbone.config.patch_size, width / self.backbone.config.patch_size)
        };
        outputs.insert("rope.cos".to_owned(), rope_cos);
        outputs.insert("rope.sin".to_owned(), rope_sin);

        let place = Placement { kind: self.info.placement.computed_in(), ..self.info.placement };
        let head_file = fixture.snapshot().join("classifier_head.safetensors");
        let head = |name| Head::load_named(&head_file, name, self.backbone.config.hidden_size, place);
        let (on_both, on_cls) = (head("linear")?, head("linear_cls")?);
        // The images of `rect.` are neither square nor of the configured size.
        for prefix in ["", "rect."] {
            let pixels =
                fixture.input(&format!("{prefix}pixel_values"))?.to_device(self.info.placement.device);
            let hidden_states = self.backbone.hidden_states(&pixels);
            let last = self.output(&pixels)?;
            let features = self.backbone.features(&last);
            outputs.insert(format!("{prefix}classifier_logits"), on_both.forward(&features));
            outputs.insert(format!("{prefix}classifier_logits_cls"), on_cls.forward(&features));
            outputs.insert(format!("{prefix}pooler_output"), features.cls);
            outputs.insert(format!("{prefix}last_hidden_state"), last);
            for (index, state) in hidden_states.into_iter().enumerate() {
                outputs.insert(format!("{prefix}hidden_states.{index}"), state);
            }
        }
        Ok(outputs)
    }
}

impl FeatureSource for Dinov3 {
    fn feature_shape(&self, kind: FeatureKind) -> [usize; 2] {
        let patch = self.backbone.config.patch_size;
        // Loading refuses a snapshot without a fixed image size.
        let (height, width) = self.info.preprocessor.fixed_size().unwrap_or_default();
        let rows = match kind {
            FeatureKind::Pooled => 2,
            FeatureKind::Tokens => 1 + (height / patch) * (width / patch),
        };
        [rows, self.backbone.config.hidden_size].map(|side| usize::try_from(side).unwrap_or(0))
    }

    fn features(&self, images: &[&Pixels], kind: FeatureKind) -> Result<Vec<Vec<f32>>, ModelError> {
        if images.is_empty() {
            return Ok(Vec::new());
        }
        let Features { cls, patches } = self.features_of(images)?;
        let rest = match kind {
            FeatureKind::Pooled => patches.mean_dim([1].as_slice(), true, None::<Kind>),
            FeatureKind::Tokens => patches,
        };
        let rows = Tensor::cat(&[cls.unsqueeze(1), rest], 1).flatten(1, 2);
        Ok(rows.f_to_device(Device::Cpu)?.try_into()?)
    }
}

/// The transformer without a head.
#[derive(Debug)]
struct Backbone {
    config: Config,
    patches: PatchEmbedding,
    /// The class token, [1, 1, hidden].
    cls: Tensor,
    /// The register tokens, [1, registers, hidden].
    registers: Tensor,
    encoder: Encoder,
    norm: LayerNorm,
    /// The cosines and sines by rows and columns of patches, of which there are few grids. They are made on
    /// the CPU, so without this cache each pass would wait for them.
    angles: RefCell<HashMap<[i64; 2], (Tensor, Tensor)>>,
}

impl Backbone {
    fn load(snapshot: &Snapshot, weights: &mut WeightLoader) -> Result<Self, ModelError> {
        let config: Config = snapshot.json("config.json")?;
        config.check().map_err(|message| ModelError::malformed(&snapshot.path("config.json"), message))?;
        let hidden = config.hidden_size;
        Ok(Self {
            patches: PatchEmbedding::load(weights, "embeddings.patch_embeddings", config.patch_size, hidden),
            cls: weights.tensor("embeddings.cls_token", &[1, 1, hidden]),
            registers: weights.tensor("embeddings.register_tokens", &[1, config.num_register_tokens, hidden]),
            encoder: Encoder {
                layers: (0..config.num_hidden_layers)
                    .map(|index| load_layer(weights, &format!("layer.{index}"), &config))
                    .collect(),
                heads: config.num_attention_heads,
            },
            angles: RefCell::default(),
            norm: LayerNorm::load(weights, "norm", hidden, config.layer_norm_eps),
            config,
        })
    }

    /// Embeds pixels [batch, 3, height, width] as [batch, 1 + registers + patches, hidden], and returns the
    /// rotary angles of the patches with them.
    fn embed(&self, pixels: &Tensor) -> (Tensor, (Tensor, Tensor)) {
        let (batch, _, height, width) = size4(pixels);
        let (rows, columns) = (height / self.config.patch_size, width / self.config.patch_size);
        let patches = self.patches.forward(&pixels.to_kind(self.cls.kind()));
        let expand = |token: &Tensor| token.expand([batch, -1, -1], false);
        let embeddings = Tensor::cat(&[expand(&self.cls), expand(&self.registers), patches], 1);
        let mut angles = self.angles.borrow_mut();
        if angles.len() >= ANGLES_MAX {
            angles.clear();
        }
        let (cos, sin) = angles.entry([rows, columns]).or_insert_with(|| self.rope(rows, columns));
        (embeddings, (cos.shallow_clone(), sin.shallow_clone()))
    }

    /// Returns the embeddings and each layer's output, all [batch, 1 + registers + patches, hidden] and
    /// before the final norm.
    fn hidden_states(&self, pixels: &Tensor) -> Vec<Tensor> {
        let (embeddings, (cos, sin)) = self.embed(pixels);
        self.encoder
            .hidden_states(embeddings, EncoderInputs { rope: Some((&cos, &sin)), attention_mask: None })
    }

    /// Returns the last hidden state after the final norm, [batch, 1 + registers + patches, hidden].
    fn output(&self, pixels: &Tensor) -> Tensor {
        let (embeddings, (cos, sin)) = self.embed(pixels);
        let inputs = EncoderInputs { rope: Some((&cos, &sin)), attention_mask: None };
        self.encoder.output(embeddings, inputs, &self.norm)
    }

    /// Splits the output into the class token's state and those of the patches, leaving out the registers.
    fn features(&self, output: &Tensor) -> Features {
        let prefix = 1 + self.config.num_register_tokens;
        Features { cls: output.select(1, 0), patches: output.narrow(1, prefix, output.size()[1] - prefix) }
    }

    /// Computes the cosine and sine of the rotary angles, [rows·columns, head width] each. The angles are the
    /// coordinates of the patch centres, in −1…1 per axis, times 2π/θ^(4k/head width): first those of the
    /// rows, then those of the columns, and the whole repeated.
    fn rope(&self, rows: i64, columns: i64) -> (Tensor, Tensor) {
        let device = self.cls.device();
        let on_cpu = (Kind::Float, Device::Cpu);
        let centres = |count: i64| ((Tensor::arange(count, on_cpu) + 0.5) / count as f64) * 2.0 - 1.0;
        let width = self.config.head_width() as f64;
        let exponents = Tensor::arange_start_step(0.0, 1.0, 4.0 / width, on_cpu);
        let frequencies = Tensor::from(self.config.rope_theta as f32).pow(&exponents).reciprocal();
        let row = centres(rows).view([rows, 1]).expand([rows, columns], false).flatten(0, 1);
        let column = centres(columns).view([1, columns]).expand([rows, columns], false).flatten(0, 1);
        let coordinates = Tensor::stack(&[row, column], -1).unsqueeze(-1);
        let angles = (coordinates * std::f64::consts::TAU * frequencies).flatten(1, 2).tile([1, 2]);
        (
            angles.cos().to_device_(device, self.cls.kind(), false, false),
            angles.sin().to_device_(device, self.cls.kind(), false, false),
        )
    }
}

fn load_layer(weights: &mut WeightLoader, name: &str, config: &Config) -> Layer {
    let (hidden, eps) = (config.hidden_size, config.layer_norm_eps);
    let mut linear = |part: &str, bias: bool| {
        Linear::load(weights, &format!("{name}.attention.{part}"), hidden, hidden, bias)
    };
    let inputs = Linear::concatenated(&[
        linear("q_proj", config.query_bias),
        linear("k_proj", config.key_bias),
        linear("v_proj", config.value_bias),
    ]);
    let projection = linear("o_proj", config.proj_bias);
    Layer {
        inputs: QuantLinear::of(inputs, weights),
        projection: QuantLinear::of(projection, weights),
        norm1: LayerNorm::load(weights, &format!("{name}.norm1"), hidden, eps),
        scale1: Some(weights.tensor(&format!("{name}.layer_scale1.lambda1"), &[hidden])),
        norm2: LayerNorm::load(weights, &format!("{name}.norm2"), hidden, eps),
        mlp: load_mlp(weights, &format!("{name}.mlp"), config),
        scale2: Some(weights.tensor(&format!("{name}.layer_scale2.lambda1"), &[hidden])),
    }
}

fn load_mlp(weights: &mut WeightLoader, name: &str, config: &Config) -> Mlp {
    let (hidden, inner) = (config.hidden_size, config.intermediate_size);
    let mut product = |part: &str, inputs, outputs| {
        let linear = Linear::load(weights, &format!("{name}.{part}"), inputs, outputs, config.mlp_bias);
        QuantLinear::of(linear, weights)
    };
    Mlp {
        gate: config.use_gated_mlp.then(|| product("gate_proj", hidden, inner)),
        up: product("up_proj", hidden, inner),
        down: product("down_proj", inner, hidden),
        activation: config.hidden_act,
    }
}
