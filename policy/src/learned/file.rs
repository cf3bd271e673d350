//! The file of the learned networks: safetensors, with the names of models in its metadata.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

use super::{Dense, ImageFusion, Learned, Network};

/// The format in the metadata of a file of this layout.
const FORMAT: &str = "concord-learned-3";
/// More correctness estimators than any policy has stages.
const ESTIMATORS_MAX: usize = 64;

impl Learned {
    /// Encodes the networks as a file; `notes` are kept in its metadata, for people.
    ///
    /// # Errors
    /// When they cannot be encoded, which networks of finite numbers always can.
    pub fn to_bytes(&self, notes: &BTreeMap<String, String>) -> Result<Vec<u8>, String> {
        let mut metadata: HashMap<String, String> =
            notes.iter().map(|(key, value)| (key.clone(), value.clone())).collect();
        let list = |names: &[Arc<str>]| {
            let names: Vec<&str> = names.iter().map(AsRef::as_ref).collect();
            serde_json::to_string(&names).map_err(|error| error.to_string())
        };
        metadata.insert("format".to_owned(), FORMAT.to_owned());
        metadata.insert("backbone".to_owned(), self.backbone.to_string());
        metadata.insert("models".to_owned(), list(&self.models)?);
        let mut tensors = Vec::new();
        if let Some(network) = &self.weights {
            tensors.extend(tensors_of("weights", network));
        }
        for (index, (models, estimator)) in self.estimators.iter().enumerate() {
            metadata.insert(format!("correctness.{index}"), list(models)?);
            tensors.extend(tensors_of(&format!("correctness.{index}"), estimator.network()));
        }
        let views: Vec<(&String, TensorView<'_>)> = tensors
            .iter()
            .map(|(name, shape, bytes)| Ok((name, TensorView::new(Dtype::F32, shape.clone(), bytes)?)))
            .collect::<Result<_, safetensors::SafeTensorError>>()
            .map_err(|error| error.to_string())?;
        safetensors::serialize(views, Some(metadata)).map_err(|error| error.to_string())
    }

    /// Decodes the networks of a file.
    ///
    /// # Errors
    /// When it is no such file, or its parts do not fit together.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, String> {
        let with_context = |error: safetensors::SafeTensorError| format!("not a safetensors file: {error}");
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(with_context)?;
        let file = SafeTensors::deserialize(bytes).map_err(with_context)?;
        let notes = header.metadata().clone().unwrap_or_default();
        if notes.get("format").map(String::as_str) != Some(FORMAT) {
            return Err(format!(
                "its format is not {FORMAT}, which this version of Concord reads: take learned, correctness, min_weight and the \
                 method \"learned\" out of the task, and fit again (`concord fit`)"
            ));
        }
        let text = |key: &str| notes.get(key).ok_or(format!("its metadata lacks {key:?}"));
        let list = |key: &str| -> Result<Vec<Arc<str>>, String> {
            let names: Vec<String> =
                serde_json::from_str(text(key)?).map_err(|error| format!("its metadata {key:?}: {error}"))?;
            Ok(names.into_iter().map(Arc::from).collect())
        };
        let mut learned = Self::new(Arc::from(text("backbone")?.as_str()));
        if let Some(network) = network_of(&file, "weights")? {
            let models = list("models")?;
            if network.outputs() != ImageFusion::outputs(models.len()) {
                let outputs = network.outputs();
                let (models, wanted) = (models.len(), ImageFusion::outputs(models.len()));
                return Err(format!(
                    "weights: {outputs} outputs for {models} models: must be {wanted}, two for each"
                ));
            }
            learned = learned.with_weights(models, network);
        }
        for index in 0..ESTIMATORS_MAX {
            let name = format!("correctness.{index}");
            let Some(network) = network_of(&file, &name)? else { break };
            if network.outputs() != 1 {
                return Err(format!("{name}: {} outputs: must be 1", network.outputs()));
            }
            learned = learned.with_estimator(&list(&name)?, network);
        }
        Ok(learned)
    }
}

/// Name, shape and little-endian bytes.
type Stored = (String, Vec<usize>, Vec<u8>);

fn tensors_of(name: &str, network: &Network) -> Vec<Stored> {
    let stored = |part: &str, shape: Vec<usize>, numbers: &[f32]| {
        let bytes = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        (format!("{name}.{part}"), shape, bytes)
    };
    let (mean, scale) = network.standardisation();
    let mut tensors = vec![stored("mean", vec![mean.len()], mean), stored("scale", vec![scale.len()], scale)];
    for (index, Dense { weight, bias }) in network.layers().iter().enumerate() {
        let outputs = bias.len();
        tensors.push(stored(
            &format!("{index}.weight"),
            vec![outputs, weight.len() / outputs.max(1)],
            weight,
        ));
        tensors.push(stored(&format!("{index}.bias"), vec![outputs], bias));
    }
    tensors
}

/// Reads a network; `None` if the file has none of this name.
fn network_of(file: &SafeTensors<'_>, name: &str) -> Result<Option<Network>, String> {
    let numbers = |part: String| -> Result<Option<Vec<f32>>, String> {
        let Ok(tensor) = file.tensor(&part) else { return Ok(None) };
        if tensor.dtype() != Dtype::F32 {
            return Err(format!("{part} is of {:?}: must be F32", tensor.dtype()));
        }
        let quads = tensor.data().as_chunks::<4>().0;
        Ok(Some(quads.iter().map(|quad| f32::from_le_bytes(*quad)).collect()))
    };
    let Some(mean) = numbers(format!("{name}.mean"))? else { return Ok(None) };
    let scale = numbers(format!("{name}.scale"))?.ok_or(format!("{name}.scale is missing"))?;
    let mut layers = Vec::new();
    while let Some(weight) = numbers(format!("{name}.{}.weight", layers.len()))? {
        let bias = format!("{name}.{}.bias", layers.len());
        let missing = format!("{bias} is missing");
        layers.push(Dense { weight, bias: numbers(bias)?.ok_or(missing)? });
    }
    Network::new(mean, scale, layers).map(Some).map_err(|error| format!("{name}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn learned() -> Learned {
        let dense = |weight: &[f32], outputs| Dense { weight: weight.to_vec(), bias: vec![0.25; outputs] };
        let network = |layers| Network::new(vec![1.0, 2.0], vec![0.5; 2], layers).unwrap();
        let models: Vec<Arc<str>> = vec![Arc::from("b"), Arc::from("a")];
        Learned::new(Arc::from("a"))
            .with_weights(models.clone(), network(vec![dense(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0], 4)]))
            .with_estimator(&models[1..], network(vec![dense(&[0.5, -0.5], 1), dense(&[3.0], 1)]))
            .with_estimator(&models, network(vec![dense(&[0.5, 1.5], 1)]))
    }

    #[test]
    fn networks_survive_their_file() {
        let notes = BTreeMap::from([("task".to_owned(), "roadwork".to_owned())]);
        let bytes = learned().to_bytes(&notes).unwrap();
        assert_eq!(Learned::from_bytes(&bytes), Ok(learned()));
        let nothing = Learned::new(Arc::from("a"));
        assert_eq!(Learned::from_bytes(&nothing.to_bytes(&notes).unwrap()), Ok(nothing));
    }

    #[test]
    fn other_files_are_refused() {
        let bytes = learned().to_bytes(&BTreeMap::new()).unwrap();
        for length in [0, 7, 8, 100, bytes.len() - 1] {
            let error = Learned::from_bytes(&bytes[..length]).unwrap_err();
            assert!(error.contains("not a safetensors file"), "{error}");
        }
        let layer = (vec![1_usize], vec![0_u8; 4]);
        let view = || TensorView::new(Dtype::F32, layer.0.clone(), &layer.1).unwrap();
        let file = |notes: &[(&str, &str)], names: &[&str]| {
            let notes = notes.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
            let tensors: Vec<(&str, TensorView<'_>)> = names.iter().map(|name| (*name, view())).collect();
            safetensors::serialize(tensors, Some(notes)).unwrap()
        };
        let (format, backbone) = (("format", FORMAT), ("backbone", "a"));
        for (notes, names, expected) in [
            (&[("format", "pt")][..], &[][..], "its format is not"),
            // An earlier format, with tensors of other names.
            (&[("format", "concord-learned-2"), backbone], &[], "out of the task, and fit again"),
            (
                &[format, backbone, ("models", "[\"a\"]")],
                &["weights.mean", "weights.scale", "weights.0.weight", "weights.0.bias"],
                "weights: 1 outputs for 1 models: must be 2, two for each",
            ),
            (&[format][..], &[], "lacks \"backbone\""),
            (&[format, backbone], &["weights.mean"], "weights.scale is missing"),
            (&[format, backbone], &["weights.mean", "weights.scale"], "weights: 0 layers"),
            (
                &[format, backbone, ("models", "[]")],
                &["weights.mean", "weights.scale", "weights.0.weight", "weights.0.bias"],
                "weights: 1 outputs for 0 models",
            ),
        ] {
            let error = Learned::from_bytes(&file(notes, names)).unwrap_err();
            assert!(error.contains(expected), "{expected:?} is missing in {error:?}");
        }
    }
}
