use std::collections::BTreeMap;
use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;

use super::*;

fn labels(names: &[&str]) -> Vec<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

fn label_rules(labels: &[String]) -> LabelRules<'_> {
    LabelRules { labels, named: BTreeMap::new(), default_label: None, group_by: None }
}

/// Files in a folder for each label; their contents do not matter.
const FILES: [&str; 5] = [
    "25_road_work/00001_00.jpg",
    "25_road_work/00001_01.jpg",
    "25_road_work/00002_00.png",
    "14_stop/00001_00.jpg",
    "14_stop/notes.txt",
];

fn folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for file in FILES {
        let path = folder.path().join(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, file).unwrap();
    }
    folder
}

fn archive(compressed: bool) -> tempfile::NamedTempFile {
    let file = tempfile::Builder::new().suffix(".tar.gz").tempfile().unwrap();
    let mut builder = tar::Builder::new(Vec::new());
    builder.append_dir_all(".", folder().path()).unwrap();
    let bytes = builder.into_inner().unwrap();
    if compressed {
        let mut encoder = GzEncoder::new(file.as_file(), Compression::fast());
        encoder.write_all(&bytes).unwrap();
        encoder.finish().unwrap();
    } else {
        std::fs::write(file.path(), bytes).unwrap();
    }
    file
}

/// Returns the name, label and group of each image.
fn reported(dataset: &Dataset) -> Vec<(&str, usize, usize)> {
    dataset.examples.iter().map(|example| (&*example.name, example.label, example.group)).collect()
}

#[test]
fn folders_and_archives_give_the_same_images() {
    let labels = labels(&["stop", "Road work"]);
    let by_sign = Regex::new(r"(.*/\d+)_\d+").unwrap();
    let label_rules = LabelRules { group_by: Some(by_sign), ..label_rules(&labels) };
    let expected = [
        ("14_stop/00001_00.jpg", 0, 0),
        ("25_road_work/00001_00.jpg", 1, 1),
        ("25_road_work/00001_01.jpg", 1, 1),
        ("25_road_work/00002_00.png", 1, 2),
    ];
    assert_eq!(reported(&Dataset::read(folder().path(), &label_rules).unwrap()), expected);
    for compressed in [false, true] {
        let archive = archive(compressed);
        let dataset = Dataset::read(archive.path(), &label_rules).unwrap();
        assert_eq!(reported(&dataset), expected, "compressed: {compressed}");
        assert_eq!(std::fs::read_to_string(&dataset.examples[0].path).unwrap(), FILES[3]);
    }
}

#[test]
fn an_ungrouped_image_is_a_group_of_its_own() {
    let labels = labels(&["stop", "road work"]);
    let dataset = Dataset::read(folder().path(), &label_rules(&labels)).unwrap();
    assert_eq!(dataset.examples.iter().map(|example| example.group).collect::<Vec<_>>(), [0, 1, 2, 3]);
}

#[test]
fn kinds_that_mean_no_label_are_named_and_can_be_given_one() {
    let labels = labels(&["no road work", "road work"]);
    let folder = folder();
    let plain = label_rules(&labels);
    let error = Dataset::read(folder.path(), &plain).unwrap_err();
    assert!(error.contains("1 images have 1 unknown labels: 14_stop; map each"), "{error}");
    let other = LabelRules { default_label: Some("no road work".to_owned()), ..label_rules(&labels) };
    let expected = vec![0, 1, 1, 1];
    let found = |label_rules: &LabelRules<'_>| {
        let dataset = Dataset::read(folder.path(), label_rules).unwrap();
        dataset.examples.iter().map(|example| example.label).collect::<Vec<_>>()
    };
    assert_eq!(found(&other), expected);
    let named = BTreeMap::from([("14_stop".to_owned(), "no road work".to_owned())]);
    assert_eq!(found(&LabelRules { named, ..label_rules(&labels) }), expected);
    let wrong = LabelRules { default_label: Some("none".to_owned()), ..label_rules(&labels) };
    let error = Dataset::read(folder.path(), &wrong).unwrap_err();
    assert_eq!(error, "no label \"none\": there is no road work, road work");
}

#[test]
fn tables_name_images_relative_to_them() {
    let labels = labels(&["no", "yes"]);
    let folder = tempfile::tempdir().unwrap();
    let table = folder.path().join("data.csv");
    std::fs::write(&table, "path,label,group\na.jpg,yes,one\nsub/b.jpg,no,\nc.jpg,yes,one\n").unwrap();
    let dataset = Dataset::read(&table, &label_rules(&labels)).unwrap();
    assert_eq!(reported(&dataset), [("a.jpg", 1, 0), ("sub/b.jpg", 0, 1), ("c.jpg", 1, 0)]);
    assert_eq!(dataset.examples[1].path, folder.path().join("sub/b.jpg"));
    std::fs::write(&table, "file,label\na.jpg,yes\n").unwrap();
    let error = Dataset::read(&table, &label_rules(&labels)).unwrap_err();
    assert!(error.contains("data.csv: ") && error.contains("the columns must be path, label"), "{error}");
}

#[test]
fn unusable_data_sets_are_errors() {
    let labels = labels(&["no", "yes"]);
    let (folder, empty) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let file = folder.path().join("image.jpg");
    std::fs::write(&file, "no archive").unwrap();
    for (source, expected) in [
        (folder.path().join("missing"), "No such file"),
        (file, "neither a folder, nor a .csv, nor a tar archive"),
        (folder.path().to_owned(), "image.jpg is in no subfolder"),
        (empty.path().to_owned(), "no images"),
    ] {
        let error = Dataset::read(&source, &label_rules(&labels)).unwrap_err();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn a_stride_takes_images_of_each_label_by_name() {
    let labels = labels(&["stop", "road work"]);
    let folder = folder();
    let all = || Dataset::read(folder.path(), &label_rules(&labels)).unwrap();
    assert_eq!(reported(&all().stride(1)), reported(&all()));
    let names = |step| -> Vec<String> {
        let taken = all().stride(step);
        taken.examples.iter().map(|example| example.name.clone()).collect()
    };
    assert_eq!(names(2), ["14_stop/00001_00.jpg", "25_road_work/00001_00.jpg", "25_road_work/00002_00.png"]);
    assert_eq!(names(9), ["14_stop/00001_00.jpg", "25_road_work/00001_00.jpg"], "the first of each at least");
}
