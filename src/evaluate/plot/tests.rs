//! Tests that every plot is drawn, as SVG that a renderer reads and as pixels that show something.

use super::*;

fn point(name: &str, role: Role, cost: f64, accuracy: f64) -> Point {
    Point { name: name.to_owned(), role, cost, accuracy, interval: (accuracy - 0.01, accuracy) }
}

fn bins() -> Vec<Option<CalibrationBin>> {
    let bin = CalibrationBin { count: 7, confidence: 0.9, accuracy: 0.8, interval: (0.5, 0.95) };
    vec![None, None, Some(bin), None]
}

fn points() -> Vec<Point> {
    vec![
        point("cheap & <small>", Role::Model, 2.0, 0.9),
        point("dear", Role::Model, 20.0, 0.99),
        point("cascade", Role::Cascade, 4.0, 0.98),
        point("always the cheapest", Role::Choice, 2.0, 0.9),
        point("oracle", Role::Baseline, 3.0, 1.0),
    ]
}

fn drawn(costs: f64) -> Vec<Plot> {
    let points: Vec<Point> =
        points().into_iter().map(|point| Point { cost: point.cost * costs, ..point }).collect();
    let line = Line { name: "a model".to_owned(), is_main: true, points: vec![(0.0, 0.9), (5.0, 0.4)] };
    let panel = Panel { title: "blur".to_owned(), lines: vec![line] };
    let diagram = Reliability { title: "temperature 1".to_owned(), ece: 0.1, bins: bins() };
    let labels: Vec<String> = (0..43).map(|label| format!("label {label}")).collect();
    let counts = (0..43).map(|row| (0..43).map(|column| usize::from(row == column) * 1234).collect());
    vec![
        tradeoff(&Tradeoff {
            points: &points,
            curve: &[(2.0 * costs, 0.9), (9.0 * costs, 0.99)],
            unit: "[ms]",
        }),
        reliability("reliability", "Reliability", &[diagram.clone(), diagram]),
        histogram("confidence", "Confidence", &Histogram { low: 0.5, bins: vec![[0, 0], [100, 3]] }),
        panels("shift", "Shift", ("severity", "accuracy"), &[panel.clone(), panel]),
        confusion("confusion", "Confusion", &Confusion { labels, counts: counts.collect() }),
    ]
    .into_iter()
    .map(Result::unwrap)
    .collect()
}

#[test]
fn every_plot_is_drawn_in_both_forms() {
    // Costs of 0, which given prices may be, are drawn as well.
    for plot in drawn(1.0).into_iter().chain(drawn(0.0)) {
        let document = usvg::Tree::from_str(&plot.svg, options()).unwrap();
        assert!(plot.svg.starts_with("<svg "), "{}", plot.name);
        let png = plot.png().unwrap();
        let pixels = image::load_from_memory(&png).unwrap().into_rgb8();
        let size = document.size().to_int_size();
        assert_eq!((pixels.width(), pixels.height()), (size.width(), size.height()), "{}", plot.name);
        assert_eq!(pixels.get_pixel(0, 0).0, [255; 3], "{} has a light background", plot.name);
        let inked = pixels.pixels().filter(|pixel| pixel.0 != [255; 3]).count();
        assert!(inked > 5000, "{}: {inked} pixels are drawn on", plot.name);
    }
}

#[test]
fn names_are_text_and_no_markup() {
    let points = points();
    let plot = tradeoff(&Tradeoff { points: &points, curve: &[], unit: "[ms]" }).unwrap();
    assert!(plot.svg.contains("cheap &amp; &lt;small&gt;"), "{}", plot.svg);
    assert!(!plot.svg.contains("<small>"));
}

#[test]
fn a_matrix_of_many_labels_stays_within_bounds_and_shows_each_number() {
    let plots = drawn(1.0);
    let confusion = plots.last().unwrap();
    assert_eq!(confusion.svg.matches(">\n1234\n<").count(), 43);
    assert!(confusion.svg.len() < 200_000, "{} bytes", confusion.svg.len());
    let size = usvg::Tree::from_str(&confusion.svg, options()).unwrap().size();
    assert!(size.width() < 2500.0 && size.height() < 2500.0, "{size:?}");
}
