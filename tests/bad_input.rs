//! Bad requests: each has its status, in the form of RFC 9457, and the server answers the next one.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::harness::server::{Server, photograph};
use crate::harness::{edited_ensemble, replace, root, two_models};
use flate2::Compression;
use flate2::write::{DeflateEncoder, GzEncoder, ZlibEncoder};

/// Returns a chunk of a PNG.
fn chunk(kind: &[u8; 4], data: &[u8]) -> Vec<u8> {
    let mut checksum = flate2::Crc::new();
    checksum.update(kind);
    checksum.update(data);
    let length = u32::try_from(data.len()).unwrap().to_be_bytes();
    [&length, &kind[..], data, &checksum.sum().to_be_bytes()].concat()
}

/// Returns a grey PNG that declares a size, with `pixels` as its compressed data.
fn png(width: u32, height: u32, pixels: &[u8]) -> Vec<u8> {
    png_with(width, height, &[], pixels)
}

/// Returns such a PNG with other chunks before its data.
fn png_with(width: u32, height: u32, chunks: &[u8], pixels: &[u8]) -> Vec<u8> {
    let header = [&width.to_be_bytes()[..], &height.to_be_bytes(), &[8, 0, 0, 0, 0]].concat();
    let (header, data, end) = (chunk(b"IHDR", &header), chunk(b"IDAT", pixels), chunk(b"IEND", &[]));
    [&b"\x89PNG\r\n\x1a\n"[..], &header, chunks, &data, &end].concat()
}

/// Returns a JPEG of the fixtures with a byte of its frame header replaced; `code` is that of the header's
/// marker.
fn jpeg_with(name: &str, code: u8, replaced: &[(usize, u8)]) -> Vec<u8> {
    let mut bytes = std::fs::read(root().join("models/tests/fixtures/images").join(name)).unwrap();
    let frame = bytes.windows(2).position(|pair| pair == [0xff, code]).unwrap();
    for (position, value) in replaced {
        bytes[frame + position] = *value;
    }
    bytes
}

fn zeros(bytes: usize) -> Vec<u8> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(&vec![0; bytes]).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn every_bad_body_has_its_status() {
    let (_folder, file) =
        edited_ensemble(|text| replace(&text, "max_body_bytes = 33_554_432", "max_body_bytes = 2_000_000"));
    let server = Server::start(&file);
    let good = photograph(0);
    let png_bytes = std::fs::read(root().join("assets/coffee.png")).unwrap();
    // The quantisation table of its first component is not there.
    let fatal = jpeg_with("rgb.jpg", 0xc0, &[(12, 3)]);
    // 7680 × 7680 pixels.
    let large = jpeg_with("progressive.jpg", 0xc2, &[(5, 30), (6, 0), (7, 30), (8, 0)]);
    let profile = chunk(b"iCCP", &[&b"profile\0\0"[..], &zeros(100_000_000)].concat());
    let more_behind = [&good[..], &[0xff, 0xda, 0, 2].repeat(500), &good].concat();
    let gzip = {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(&vec![0; 10_000_000]).unwrap();
        encoder.finish().unwrap()
    };
    let zip = {
        let mut encoder = DeflateEncoder::new(b"PK\x03\x04".to_vec(), Compression::best());
        encoder.write_all(&vec![0; 10_000_000]).unwrap();
        encoder.finish().unwrap()
    };
    let json = |text: &str| text.as_bytes().to_vec();
    let form = |name: &str| {
        let image = String::from_utf8_lossy(b"not an image");
        json(&format!(
            "--b\r\nContent-Disposition: form-data; name=\"{name}\"; filename=\"a\"\r\n\r\n{image}\r\n--b--\r\n"
        ))
    };
    let (app_json, multipart) = ("application/json", "multipart/form-data; boundary=b");
    let cases: Vec<(&str, &str, Vec<u8>, u16, &str)> = vec![
        ("empty", "image/png", Vec::new(), 400, "empty"),
        ("text", "image/png", json("this is not an image"), 400, "not-an-image"),
        ("a zip bomb", "image/png", zip, 400, "not-an-image"),
        ("truncated", "image/png", png_bytes[..png_bytes.len() / 2].to_vec(), 400, "broken-image"),
        ("cut off", "image/jpeg", good[..good.len() / 2].to_vec(), 400, "broken-image"),
        (
            "cut off, and another behind",
            "image/jpeg",
            [&good[..good.len() / 2], &good].concat(),
            400,
            "broken-image",
        ),
        ("damaged so that the decoder gives up", "image/jpeg", fatal, 400, "broken-image"),
        ("more behind its end", "image/jpeg", more_behind, 200, ""),
        ("a progressive JPEG that takes 180 MB to decode", "image/jpeg", large, 413, "too-large"),
        ("a PNG whose profile unpacks to 100 MB", "image/png", png_with(8, 8, &profile, &zeros(72)), 200, ""),
        ("50,000 × 50,000 declared", "image/png", png(50_000, 50_000, &zeros(1000)), 413, "too-large"),
        ("a PNG that unpacks to more than it declares", "image/png", png(8, 8, &zeros(100_000_000)), 200, ""),
        ("a PNG that unpacks to less", "image/png", png(7000, 7000, &zeros(1000)), 400, "broken-image"),
        ("oversized", "image/png", vec![0; 2_000_001], 413, "too-large"),
        ("wrong type", "text/html", good.clone(), 415, "unsupported-media-type"),
        ("broken JSON", app_json, json("{\"image\": "), 400, "bad-request"),
        ("JSON without an image", app_json, json("{\"photo\": \"\"}"), 400, "bad-request"),
        ("JSON of another form", app_json, json("[1, 2]"), 400, "bad-request"),
        ("a prompt for a task", app_json, json("{\"image\": \"\", \"prompt\": \"x\"}"), 400, "bad-request"),
        ("bad base64", app_json, json("{\"image\": \"???\"}"), 400, "bad-request"),
        (
            "a data URL without base64",
            app_json,
            json("{\"image\": \"data:image/png,abc\"}"),
            400,
            "bad-request",
        ),
        ("base64 of no image", app_json, json("{\"image\": \"aGVsbG8=\"}"), 400, "not-an-image"),
        ("base64 of nothing", app_json, json("{\"image\": \"\"}"), 400, "empty"),
        ("oversized JSON", app_json, vec![b' '; 3_000_000], 413, "too-large"),
        ("a form without an image", multipart, form("other"), 400, "bad-request"),
        ("a form whose part is not an image", multipart, form("image"), 400, "not-an-image"),
        ("broken form", multipart, json("nothing of the kind"), 400, "bad-request"),
    ];
    for (what, content_type, body, status, kind) in cases {
        let answer = server
            .client
            .send(server.client.post("roadwork").header("content-type", content_type).body(body));
        assert_eq!(answer.status, status, "{what}: {answer:?}");
        if status == 200 {
            continue;
        }
        assert_eq!(answer.body["type"], kind, "{what}: {answer:?}");
        assert_eq!(answer.header("content-type"), "application/problem+json", "{what}");
        assert_eq!(answer.body["status"], status, "{what}");
        for field in ["title", "detail", "request_id", "trace_id"] {
            assert!(
                answer.body[field].as_str().is_some_and(|text| !text.is_empty()),
                "{what}: {field} in {answer:?}"
            );
        }
    }
    let compressed = server.client.post("roadwork").header("content-encoding", "gzip").body(gzip);
    assert_eq!(server.client.send(compressed).status, 415);
    let unknown = server.client.classify("potholes", &good);
    assert_eq!((unknown.status, &unknown.body["type"]), (404, &"unknown-task".into()));
    assert!(unknown.body["detail"].as_str().unwrap().contains("roadwork, traffic_sign"), "{unknown:?}");
    assert_eq!(server.client.get("/v2/nothing").body["type"], "not-found");
    assert_eq!(server.client.get("/v1/tasks/roadwork/classify").status, 405);
    assert_eq!(server.client.classify("roadwork", &good).status, 200, "and the next one is answered");
    assert_eq!(server.client.metric("concord_in_flight_requests", &[]), 0.0);
}

/// The size of such a file says nothing of the work that is in it.
#[test]
fn thin_images_take_little_memory() {
    const SIDE: u32 = 4_000_000;
    /// The decoder's row, grey and RGB pixels are 28 MB, and the resize may take 64 MiB for each of two
    /// models; in the order of the reference it took 3 GB.
    const GROWTH_MB_MAX: f64 = 268.0;
    let server = Server::start(&two_models());
    assert_eq!(server.client.classify("roadwork", &photograph(0)).status, 200);
    let before = server.peak_megabytes();
    for (width, height) in [(1, SIDE), (SIDE, 1)] {
        // A byte before each row says how it is filtered.
        let bytes = (width as usize + 1) * height as usize;
        let answer = server.client.classify("roadwork", &png(width, height, &zeros(bytes)));
        assert_eq!(answer.status, 200, "{width} × {height}: {answer:?}");
        let growth = server.peak_megabytes() - before;
        assert!(growth <= GROWTH_MB_MAX, "{width} × {height}: {growth:.0} MB more");
    }
}

#[test]
fn unusual_image_formats_get_the_label_of_their_content() {
    let server = Server::start(&two_models());
    let folder = root().join("models/tests/fixtures/images");
    for name in ["grey16.png", "cmyk.jpg", "orientation_6.jpg", "palette.png", "rgba.png", "bilevel.png"] {
        let judge = |name: &str| {
            server.client.classify_fresh("traffic_sign", &std::fs::read(folder.join(name)).unwrap())
        };
        // Beside each is Pillow's conversion of it: upright, 8-bit RGB.
        let (stored, plain) = (judge(name), judge(&format!("{name}.rgb.png")));
        assert_eq!((stored.status, plain.status), (200, 200), "{name}: {stored:?}");
        assert_eq!(stored.body["label"], plain.body["label"], "{name}");
    }
}

/// A body that trickles in occupies only its connection, and not for ever.
#[test]
fn a_slow_body_is_refused_at_the_deadline() {
    let (_folder, file) =
        edited_ensemble(|text| replace(&text, "request_timeout_ms = 10_000", "request_timeout_ms = 500"));
    let server = Server::start(&file);
    let address = server.client.address.strip_prefix("http://").unwrap();
    let mut slow = TcpStream::connect(address).unwrap();
    slow.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let head = "POST /v1/tasks/roadwork/classify HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n";
    slow.write_all(head.as_bytes()).unwrap();
    slow.write_all(&[0; 10]).unwrap();
    let started = Instant::now();
    let mut answer = String::new();
    let _closed_or_reset = slow.read_to_string(&mut answer);
    assert!(answer.starts_with("HTTP/1.1 408") && answer.contains("slow-body"), "{answer:?}");
    assert!(started.elapsed() >= Duration::from_millis(400));
    // This one is never completed.
    let mut broken = TcpStream::connect(address).unwrap();
    broken.write_all(head.as_bytes()).unwrap();
    drop(broken);
    server.client.wait_until("no request is in flight", |client| {
        client.metric("concord_in_flight_requests", &[]) == 0.0
    });
    assert_eq!(server.client.classify("roadwork", &photograph(0)).status, 200);
}
