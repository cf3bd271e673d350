//! The shipped ensemble on real photographs that nobody trained on.

use std::path::PathBuf;

use crate::harness::{concord, missing, root};

/// The stride through the 6,315 photographs of the test archive: enough of them to notice a broken model.
const STRIDE: usize = 15;

/// Returns the test archive, or says that it is missing.
fn archive() -> Option<PathBuf> {
    let folder =
        std::env::var_os("CONCORD_DATA").map_or_else(|| root().join("../shared/data"), PathBuf::from);
    let archive = root().join(folder).join("gtsrb_test.tar.gz");
    if archive.exists() {
        return Some(archive);
    }
    missing(&format!("there is no {}: CONCORD_DATA names its folder", archive.display()));
    None
}

#[test]
fn both_stages_decide_and_road_work_is_recognised() {
    let Some(archive) = archive() else { return };
    let images = tempfile::tempdir().unwrap();
    let mut opened = tar::Archive::new(flate2::read::GzDecoder::new(std::fs::File::open(archive).unwrap()));
    for (index, entry) in opened.entries().unwrap().enumerate() {
        let mut entry = entry.unwrap();
        if index % STRIDE == 0 {
            entry.unpack_in(images.path()).unwrap();
        }
    }
    let run = concord(&["classify", "--json", "--task", "roadwork", images.path().to_str().unwrap()]);
    assert_eq!(run.status, 0, "{}", run.stderr);
    let verdicts = run.json_lines();
    assert!(verdicts.len() > 400, "only {}", verdicts.len());
    let mut counts = [[0.0_f64; 2]; 2];
    for verdict in &verdicts {
        let truth = verdict["file"].as_str().unwrap().contains("25_road_work");
        let predicted = verdict["label"] == "road work";
        counts[usize::from(truth)][usize::from(predicted)] += 1.0;
    }
    let [[tn, fp], [fn_, tp]] = counts;
    let mcc = (tp * tn - fp * fn_) / ((tp + fp) * (tp + fn_) * (tn + fp) * (tn + fn_)).sqrt();
    assert!(mcc > 0.85, "MCC {mcc:.3}: {counts:?}");
    for stage in [1, 2] {
        let share = verdicts.iter().filter(|verdict| verdict["stage"] == stage).count() as f64
            / verdicts.len() as f64;
        assert!(share > 0.03, "stage {stage} decides {share:.3}");
    }
}
