//! The validation of `ensemble.toml`: every fault is reported at its place.

use std::path::Path;

use concord::config::{ConfigError, Diagnostics, Ensemble};
use concord_models::OptionSpec;
use concord_policy::FusionMethod;

const SHIPPED: &str = include_str!("../ensemble.toml");

fn parse(text: &str, variables: &[(&str, &str)]) -> Result<Ensemble, Diagnostics> {
    let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    Ensemble::parse(text, "ensemble.toml", Path::new("/etc/concord"), variables)
}

/// Returns the printed faults, a line for each; none for a valid file.
fn complaints(text: &str, variables: &[(&str, &str)]) -> Vec<String> {
    let Err(faults) = parse(text, variables) else { return Vec::new() };
    faults.to_string().lines().map(str::to_owned).collect()
}

#[test]
fn the_shipped_ensemble_is_valid() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("ensemble.toml");
    let ensemble = Ensemble::load(&path).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(ensemble.folder(), path.parent().unwrap());
    assert_eq!(ensemble.server().max_pixels, 64_000_000);
    assert_eq!(ensemble.models().keys().collect::<Vec<_>>(), ["dinov3", "florence2", "molmo2", "siglip2"]);
    assert_eq!(ensemble.clouds().keys().collect::<Vec<_>>(), ["cloud"]);
    let [roadwork, traffic_sign] = ["roadwork", "traffic_sign"].map(|task| &ensemble.tasks()[task]);
    assert_eq!(roadwork.labels(), ["no road work", "road work"]);
    assert_eq!(roadwork.stages().len(), 4);
    assert_eq!((traffic_sign.labels().len(), traffic_sign.labels()[25].as_str()), (43, "road work"));
    assert_eq!(traffic_sign.prompts()[14], ["a photo of a stop traffic sign"]);
}

#[test]
fn all_faults_of_a_file_are_reported_with_their_lines() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/config/six_faults.toml");
    let Err(ConfigError::Invalid(faults)) = Ensemble::load(&path) else { panic!("the file has faults") };
    let found = faults.to_string().replace(&format!("{}:", path.display()), "");
    let expected = [
        r#"4: server.max_pixles: unknown key (did you mean "max_pixels"?): must be one of listen, workers, max_connections, max_in_flight, request_timeout_ms, shutdown_timeout_s, max_pixels, max_pixels_in_flight, max_scratch_bytes, max_body_bytes, max_body_bytes_in_flight, cpu_threads, api_keys_env, tls_certificate, tls_key"#,
        r#"5: server.max_body_bytes: "32 MiB" is of the wrong type: must be a whole number, 0 or more"#,
        "6: server.cpu_threads: 5000 is out of range: must be from 0 to 1024",
        r#"11: models.dinov3.heads.streets: "streets" is not a configured task: must be one of roadwork, sign"#,
        "12: models.dinov3.lowercase: not an option of architecture dinov3: only siglip2 takes it",
        "14: models.resnet.snapshot: is missing or empty: must be the folder of a Hugging Face snapshot",
        r#"15: models.resnet.architecture: "resnet50" is not an architecture: must be one of dinov3, siglip2, florence2, molmo2, torchscript, cloud"#,
        r#"16: models.resnet.device: "gpu" is not a device: must be auto, cpu, cuda or cuda:N"#,
        r#"23: tasks.roadwork.fusion.method: "log-linear" is not a fusion method (did you mean "log_linear"?): must be one of linear, log_linear, learned"#,
        r#"24: tasks.roadwork.fusion.weights.resnet: "half" is of the wrong type: must be a number"#,
        "28: tasks.roadwork.stages[0].accept.confidence: 1.7 is not a confidence: must be greater than 0 and at most 1",
        r#"33: tasks.roadwork.stages[1].models[1]: "dinov2" is not a configured model (did you mean "dinov3"?): must be one of dinov3, resnet"#,
        "35: tasks.roadwork.stages[1].burst_queue_depth: needs a stage of optional models: where they fail, the earlier stage is asked",
        "37: tasks.sign.question: is missing or empty: must be what is asked about the image",
        r#"39: tasks.sign.stages[0].models[0]: "dinov3" has no head for this task: must have one in models.dinov3.heads"#,
    ];
    assert_eq!(found.lines().collect::<Vec<_>>(), expected);
}

#[test]
fn wrong_types_in_one_section_do_not_hide_each_other() {
    let text = SHIPPED.replacen("max_pixels = 64_000_000", "max_pixels = true", 1).replacen(
        "cpu_threads = 2",
        "cpu_threads = -1",
        1,
    );
    let expected = [
        "ensemble.toml:8: server.max_pixels: true is of the wrong type: must be a whole number, 0 or more",
        "ensemble.toml:10: server.cpu_threads: -1 is of the wrong type: must be a whole number, 0 or more",
    ];
    assert_eq!(complaints(&text, &[]), expected);
}

#[test]
fn each_fault_has_its_message() {
    // The text that is replaced in the shipped file, its replacement, and a part of the message.
    let cases = [
        ("\n[server]", "\n[server", "ensemble.toml:7:8: not TOML: "),
        ("cpu_threads = 2 ", "cpu_threads = nan ", "\"NaN\" is of the wrong type: must be a whole number"),
        ("[models.siglip2]", "[models.SigLIP]", "models.SigLIP: not a name: must be of lower-case letters"),
        (
            "\n[server]",
            "\n[chache]\n[server]",
            "ensemble.toml:7: chache: unknown key (did you mean \"cache\"?): must be one of server, cache, telemetry, models, tasks",
        ),
        ("\"127.0.0.1:8080\"", "\"8080\"", "server.listen: \"8080\" is not an address: must be HOST:PORT"),
        (
            "[server]\n",
            "[server]\ntls_key = \"key.pem\"\n",
            "server.tls_certificate: is missing: must be given with tls_key",
        ),
        (
            "\"memory\"",
            "\"reddis\"",
            "cache.backend: \"reddis\" is not a cache backend (did you mean \"redis\"?): must be one of memory, redis",
        ),
        ("ttl_s = 86_400", "ttl_s = 0", "cache.ttl_s: 0 is out of range"),
        (
            "[cache] ",
            "[cache]\nurl = \"http://user:secret@x\" ",
            "cache.url: is not the address of a Redis server",
        ),
        ("sample_ratio = 0.01", "sample_ratio = 1.5", "telemetry.sample_ratio: 1.5 is out of range"),
        (
            "[telemetry]",
            "[telemetry]\notlp_endpoint = \"jaeger:4318\"",
            "telemetry.otlp_endpoint: \"jaeger:4318\" is not a URL",
        ),
        ("\"human\"", "\"xml\"", "telemetry.log_format: \"xml\" is not a log format"),
        (
            "max_batch = 32",
            "max_batch = 0",
            "models.dinov3.max_batch: 0 is out of range: must be from 1 to 1024",
        ),
        (
            "max_batch = 32 ",
            "graph_batches = [4, 2]\nmax_batch = 32 ",
            "models.dinov3.graph_batches: [4, 2] cannot be used: must be ascending batch sizes, from 1 to max_batch (32)",
        ),
        ("max_batch = 32 ", "graph_batches = [0, 2]\nmax_batch = 32 ", "models.dinov3.graph_batches: [0, 2]"),
        (
            "max_batch = 32 ",
            "graph_batches = [1, 64]\nmax_batch = 32 ",
            "models.dinov3.graph_batches: [1, 64]",
        ),
        ("\n[server]", "\ntasks = 3\n[server]", "not TOML: "),
        (
            "{ confidence = 0.95 }",
            "[0.95, true]",
            "stages[0].accept: a list is of the wrong type: must be a table",
        ),
        (
            "confidence = 0.95",
            "confidense = 0.95",
            "(did you mean \"confidence\"?): must be one of confidence, correctness, agreement",
        ),
        ("snapshot = \"models/nano/siglip2\"", "", "models.siglip2.snapshot: is missing or empty"),
        (
            "dtype = \"fp32\"",
            "dtype = \"int8\"",
            "models.dinov3.dtype: \"int8\" is not a number format: must be one of fp32, bf16, fp16, fp8",
        ),
        (
            "architecture = \"siglip2\"",
            "architecture = \"florence2\"\nmode = \"detekt\"",
            "models.siglip2.mode: \"detekt\" is not a mode (did you mean \"detect\"?): must be one of likelihood, detect",
        ),
        (
            "architecture = \"siglip2\"",
            "architecture = \"siglip2\"\ndecode = \"quick\"",
            "models.siglip2.decode: \"quick\" is not a way to decode: must be one of exact, fast",
        ),
        (
            ", traffic_sign = \"head.traffic_sign.safetensors\"",
            "",
            "tasks.traffic_sign.stages[0].models[0]: \"dinov3\" has no head for this task",
        ),
    ];
    for (from, to, expected) in cases {
        assert!(SHIPPED.contains(from), "the shipped file has no {from:?}");
        let found = complaints(&SHIPPED.replacen(from, to, 1), &[]);
        assert!(
            found.iter().any(|complaint| complaint.contains(expected)),
            "{to}: {expected:?} is not in {found:#?}"
        );
    }
}

#[test]
fn a_file_without_models_and_tasks_is_refused() {
    let expected = [
        "ensemble.toml:1: models: is missing: must have at least one [models.NAME]",
        "ensemble.toml:1: tasks: is missing: must have at least one [tasks.NAME]",
    ];
    assert_eq!(complaints("", &[]), expected);
    assert!(
        complaints("models = 3\ntasks = []", &[])[0]
            .contains("models: 3 is of the wrong type: must be a table")
    );
}

#[test]
fn variables_override_tables() {
    let variables = [
        ("CONCORD__SERVER__MAX_PIXELS", "1000"),
        ("CONCORD__MODELS__DINOV3__DEVICE", "cpu"),
        ("CONCORD__MODELS__SIGLIP2__LOWERCASE", "false"),
        ("CONCORD__TASKS__TRAFFIC_SIGN__QUESTION", "Which?"),
        ("CONCORD__TASKS__ROADWORK__FUSION__METHOD", "log_linear"),
        ("CONCORD__TASKS__ROADWORK__FUSION__WEIGHTS__DINOV3", "3"),
        ("CONCORD_CLOUD_KEY", "not an override"),
    ];
    let ensemble = parse(SHIPPED, &variables).unwrap_or_else(|faults| panic!("{faults}"));
    assert_eq!(ensemble.server().max_pixels, 1000);
    assert_eq!(ensemble.models()["dinov3"].device, "cpu");
    let lowercase = OptionSpec::flag("lowercase", true, "");
    assert!(!ensemble.models()["siglip2"].own.flag(&lowercase));
    assert_eq!(ensemble.tasks()["traffic_sign"].question(), "Which?");
    let roadwork = &ensemble.tasks()["roadwork"];
    assert_eq!(roadwork.fusion(), FusionMethod::LogLinear);
    let weights: Vec<f64> = roadwork.members().map(|member| member.weight().get()).collect();
    assert_eq!(weights, [3.0, 0.2, 0.15, 0.15, 0.1]);
}

#[test]
fn fp8_is_refused_on_the_cpu_and_for_architectures_without_it() {
    let on = |device, model: &str| {
        let (device_key, dtype_key) =
            (format!("CONCORD__MODELS__{model}__DEVICE"), format!("CONCORD__MODELS__{model}__DTYPE"));
        complaints(SHIPPED, &[(device_key.as_str(), device), (dtype_key.as_str(), "fp8")])
    };
    for (device, model, expected) in [
        (
            "cpu",
            "DINOV3",
            "models.dinov3.dtype: \"fp8\" needs a GPU of compute capability 8.9 or newer (Ada, Hopper), not device \
             \"cpu\": choose \"bf16\"",
        ),
        (
            "auto",
            "FLORENCE2",
            "models.florence2.dtype: \"fp8\" is not for architecture florence2: choose \"bf16\"",
        ),
    ] {
        let found = on(device, model);
        assert!(found.len() == 1 && found[0].contains(expected), "{expected:?} is not in {found:#?}");
    }
    assert_eq!(on("cuda", "SIGLIP2"), Vec::<String>::new());
}

#[test]
fn a_fault_of_a_variable_names_the_variable() {
    let cases = [
        (
            "CONCORD__SERVER__MAX_PIXELS",
            "many",
            r#"server.max_pixels: "many" is of the wrong type: must be a whole number, 0 or more"#,
        ),
        (
            "CONCORD__SERVER__MAX_PIXELS",
            "0",
            "server.max_pixels: 0 is out of range: must be from 1 to 1000000000",
        ),
        ("CONCORD__SERVER", "3", "server: 3 is of the wrong type: must be a table"),
        (
            "CONCORD__SERVER__THREADS",
            "3",
            "server.threads: unknown key: must be one of listen, workers, max_connections, max_in_flight, request_timeout_ms, shutdown_timeout_s, max_pixels, max_pixels_in_flight, max_scratch_bytes, max_body_bytes, max_body_bytes_in_flight, cpu_threads, api_keys_env, tls_certificate, tls_key",
        ),
        (
            "CONCORD__SERVED__PORT",
            "3",
            "served: unknown key (did you mean \"server\"?): must be one of server, cache, telemetry, models, tasks",
        ),
        (
            "CONCORD__MODELS__CLIP__SNAPSHOT",
            "x",
            "models.clip.architecture: is missing or empty: must be one of dinov3, siglip2, florence2, molmo2, torchscript, cloud",
        ),
        (
            "CONCORD__TASKS__ROADWORK__FUSION__WEIGHTS__DINOV3",
            "-1",
            "tasks.roadwork.fusion.weights.dinov3: -1 is not a weight: must be greater than 0 and finite; a model \
             that should not count costs nothing when you take it out of the stages instead",
        ),
        (
            "CONCORD__TASKS__ROADWORK__STAGES__0__ACCEPT__CONFIDENCE",
            "0.5",
            "tasks.roadwork.stages.0.accept.confidence: variables override tables, and stages are a list: must be \
             changed in the file",
        ),
        (
            "CONCORD__SERVER____X",
            "1",
            r#"server."".x: not the name of an override: must be CONCORD__SECTION__KEY"#,
        ),
    ];
    for (name, value, expected) in cases {
        assert_eq!(complaints(SHIPPED, &[(name, value)]), [format!("{name}: {expected}")], "{name}={value}");
    }
}

#[test]
fn no_text_makes_the_parser_panic() {
    for (end, _) in SHIPPED.char_indices() {
        let _ = parse(&SHIPPED[..end], &[]);
    }
    // Every character is replaced once by one that has a meaning in TOML.
    for (index, (start, char)) in SHIPPED.char_indices().enumerate() {
        let other = ["[", "\"", "=", "{", "9", "\n", "\0"][index % 7];
        let _ = parse(&[&SHIPPED[..start], other, &SHIPPED[start + char.len_utf8()..]].concat(), &[]);
    }
}

#[test]
fn a_missing_file_is_named() {
    let error = Ensemble::load(Path::new("/nowhere/ensemble.toml")).unwrap_err();
    assert!(error.to_string().starts_with("/nowhere/ensemble.toml: "), "{error}");
}
