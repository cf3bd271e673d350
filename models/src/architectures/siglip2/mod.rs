//! SigLIP 2: an image tower and a text tower that share an embedding space and answer tasks zero-shot by
//! prompts; knows no other architecture.
//!
//! The source is Tschannen et al., "SigLIP 2", 2025 (arXiv 2502.14786). Tensor names and numerics follow
//! transformers' `modeling_siglip.py` (fixed resolution) and `modeling_siglip2.py` (NaFlex: any resolution).

mod text;
mod vision;

use std::collections::{BTreeMap, HashMap};

use concord_policy::ModelOutput;
use serde::Deserialize;
use tch::{Device, Kind, Tensor};

use crate::ModelError;
use crate::architectures::architecture::Architecture;
use crate::image::preprocess::{Pixels, Preprocessor};
use crate::inspect::bench_target::{BenchTarget, POOLED};
use crate::inspect::fixture::Fixture;
use crate::model::{LoadedModelInfo, Model};
use crate::nn::encoder::Names;
use crate::nn::layers::unit_rows;
use crate::options::{ModelOptions, OptionSpec};
use crate::output::outputs;
use crate::runtime::cuda_graphs::CudaGraphCache;
use crate::runtime::device::Placement;
use crate::snapshot::folder::Snapshot;
use crate::task::{TaskId, TaskSpec};
use text::{TextConfig, TextTower};
use vision::{VisionBatch, VisionConfig, VisionTower};

pub(crate) const ARCHITECTURE: Architecture = Architecture {
    name: "siglip2",
    model_types: &["siglip", "siglip2"],
    capabilities: &[],
    options: &[LOWERCASE],
    fp8: &["vision_model.encoder.layers."],
    load,
};

const LOWERCASE: OptionSpec = OptionSpec::flag(
    "lowercase",
    true,
    "Whether prompts are put in lower case, as the published models were trained.",
);

/// The names of a layer's parts, which are the same in both towers.
const NAMES: Names = Names {
    layers: "layers",
    norm1: "layer_norm1",
    query: "self_attn.q_proj",
    key: "self_attn.k_proj",
    value: "self_attn.v_proj",
    output: "self_attn.out_proj",
    norm2: "layer_norm2",
    up: "mlp.fc1",
    down: "mlp.fc2",
};

/// The contents of `config.json`.
#[derive(Debug, Deserialize)]
struct Config {
    model_type: String,
    #[serde(default)]
    text_config: TextConfig,
    #[serde(default)]
    vision_config: VisionConfig,
}

fn load(snapshot: &Snapshot, options: &ModelOptions, place: Placement) -> Result<Box<dyn Model>, ModelError> {
    let config: Config = snapshot.json("config.json")?;
    let malformed = |message: String| ModelError::malformed(&snapshot.path("config.json"), message);
    config.text_config.check().map_err(malformed)?;
    config.vision_config.check().map_err(malformed)?;
    let preprocessor = Preprocessor::load(snapshot)?;
    let naflex = config.model_type == "siglip2";
    config.vision_config.check_preprocessor(naflex, &preprocessor).map_err(malformed)?;

    let mut weights = snapshot.weights(place)?;
    let lowercase = options.own.flag(&LOWERCASE);
    // Prompts are embedded once, so fp8 would save no time, and its errors would reach all images.
    let text =
        weights.without_fp8(|weights| TextTower::load(weights, snapshot, &config.text_config, lowercase))?;
    let vision = VisionTower::load(&mut weights, &config.vision_config, naflex);
    let (logit_scale, logit_bias) = (weights.tensor("logit_scale", &[1]), weights.tensor("logit_bias", &[1]));
    let parameters = weights.finish()?;
    Ok(Box::new(Siglip2 {
        text,
        vision,
        logit_scale,
        logit_bias,
        info: LoadedModelInfo { parameters, preprocessor, placement: place },
        labels: HashMap::new(),
        graphs: options.cuda_graphs(place),
    }))
}

/// A loaded SigLIP 2, and the label embeddings of the prepared tasks.
#[derive(Debug)]
struct Siglip2 {
    text: TextTower,
    vision: VisionTower,
    /// The logarithm of the scale of the cosines, \[1\].
    logit_scale: Tensor,
    logit_bias: Tensor,
    info: LoadedModelInfo,
    /// The embeddings of the labels of each prepared task, [labels, width] with unit rows. They are in fp32,
    /// like all that comes after the towers: half precision would round the scaled cosines to tenths.
    labels: HashMap<TaskId, Tensor>,
    /// The CUDA graphs of the image tower.
    graphs: CudaGraphCache,
}

impl Siglip2 {
    /// Returns the image embeddings [batch, width] in fp32, with unit rows.
    fn image_embeddings(&self, batch: &VisionBatch) -> Result<Tensor, ModelError> {
        Ok(unit_rows(&self.pooled(batch)?.to_kind(Kind::Float)))
    }

    /// Returns the image tower's pooled output, [batch, width]. Images of a fixed size run through CUDA
    /// graphs; those of a NaFlex model may have any proportions and do not.
    fn pooled(&self, batch: &VisionBatch) -> Result<Tensor, ModelError> {
        let pool = |batch: &VisionBatch| self.vision.pool(&self.vision.output(batch), batch);
        let VisionBatch::Fixed(pixels) = batch else { return Ok(pool(batch)) };
        let forward = |inputs: &[Tensor]| vec![pool(&VisionBatch::Fixed(inputs[0].shallow_clone()))];
        self.graphs.run(&[pixels], &[], forward)?.into_iter().next().ok_or(ModelError::NotPrepared)
    }

    /// Returns the mean of a label's prompt embeddings, scaled back to length 1: \[width\].
    fn label_embedding(&self, prompts: &[String]) -> Result<Tensor, ModelError> {
        let ids = self.text.tokenize(prompts, self.info.placement.device)?;
        let pooled = self.text.pool(&self.text.output(&self.text.hidden_states(&ids)));
        let embeddings = unit_rows(&pooled.to_kind(Kind::Float));
        Ok(unit_rows(&embeddings.mean_dim([0].as_slice(), false, None::<Kind>)))
    }
}

impl Model for Siglip2 {
    fn info(&self) -> &LoadedModelInfo {
        &self.info
    }

    fn prepare(&mut self, id: TaskId, task: &TaskSpec) -> Result<(), ModelError> {
        let embeddings: Vec<Tensor> =
            task.labels.iter().map(|(_, prompts)| self.label_embedding(prompts)).collect::<Result<_, _>>()?;
        self.labels.insert(id, Tensor::stack(&embeddings, 0));
        Ok(())
    }

    fn forget(&mut self, id: TaskId) {
        self.labels.remove(&id);
    }

    /// Returns the scaled cosines as logits. The bias of the sigmoid loss is the same for every label, so a
    /// softmax over the labels does not see it.
    fn classify(&self, id: TaskId, images: &[&Pixels]) -> Result<Vec<ModelOutput>, ModelError> {
        let labels = self.labels.get(&id).ok_or(ModelError::NotPrepared)?;
        if images.is_empty() {
            return Ok(Vec::new());
        }
        let batch =
            VisionBatch::stack(images, self.info.preprocessor.max_patches(), self.info.placement.device);
        let cosines = self.image_embeddings(&batch)?.matmul(&labels.tr());
        Ok(outputs(&(cosines * self.logit_scale.to_kind(Kind::Float).exp()))?)
    }

    fn bench_targets(&self, images: &[&Pixels], _: usize) -> Result<Vec<BenchTarget<'_>>, ModelError> {
        let batch =
            VisionBatch::stack(images, self.info.preprocessor.max_patches(), self.info.placement.device);
        Ok(vec![BenchTarget::new(POOLED, move || self.pooled(&batch))])
    }

    fn parity_outputs(&self, fixture: &Fixture) -> Result<BTreeMap<String, Tensor>, ModelError> {
        let names: &[&str] = match self.info.preprocessor.max_patches() {
            Some(_) => &["landscape", "portrait", "banner"],
            None => &["landscape", "portrait"],
        };
        let images = fixture.images(names, &self.info.preprocessor)?;
        let ours = VisionBatch::stack(
            &images.iter().collect::<Vec<_>>(),
            self.info.preprocessor.max_patches(),
            Device::Cpu,
        );
        let mut outputs = ours.named();
        outputs.insert("input_ids".to_owned(), self.text.tokenize(fixture.texts(), Device::Cpu)?);

        // From here on everything starts at the reference's own inputs, so that an error shows where it
        // arises.
        let batch = VisionBatch::of_fixture(fixture, self.info.placement.device)?;
        let vision_states = self.vision.hidden_states(&batch);
        let vision_last = self.vision.output(&batch);
        let vision_pooled = self.pooled(&batch)?;
        let text_states =
            self.text.hidden_states(&fixture.input("input_ids")?.to_device(self.info.placement.device));
        let text_last = self.text.output(&text_states);
        let text_pooled = self.text.pool(&text_last);
        let (image_embeds, text_embeds) = (unit_rows(&vision_pooled), unit_rows(&text_pooled));
        let logits = image_embeds.matmul(&text_embeds.tr()) * self.logit_scale.exp() + &self.logit_bias;

        if batch.is_naflex() {
            outputs.insert("vision.embeddings".to_owned(), vision_states[0].shallow_clone());
        }
        for (tower, states) in [("vision", vision_states), ("text", text_states)] {
            for (index, state) in states.into_iter().enumerate() {
                outputs.insert(format!("{tower}.hidden_states.{index}"), state);
            }
        }
        let named = [
            ("vision.last_hidden_state", vision_last),
            ("vision.pooler_output", vision_pooled),
            ("text.last_hidden_state", text_last),
            ("text.pooler_output", text_pooled),
            ("image_embeds", image_embeds),
            ("text_embeds", text_embeds),
            ("probs", logits.to_kind(Kind::Float).sigmoid()),
            ("logits_per_image", logits),
        ];
        outputs.extend(named.map(|(name, tensor)| (name.to_owned(), tensor)));
        Ok(outputs)
    }
}
