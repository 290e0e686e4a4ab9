//! The rates as bars, in SVG.

use std::fmt::Write;

use crate::{
    report::{Measurement, Report, shown},
    statistics::{median, percentile},
};

const BAR_HEIGHT: usize = 22;
const LABEL_WIDTH: f64 = 330.0;
const BAR_WIDTH: f64 = 420.0;
const WIDTH: f64 = LABEL_WIDTH + BAR_WIDTH + 110.0;

/// One bar per measured rate of jobs, with a line from the least to the greatest value.
pub(crate) fn rates(report: &Report) -> String {
    let rates: Vec<_> = report.measurements.iter().filter(|one| one.unit == "jobs/s").collect();
    let most = rates.iter().map(|one| percentile(&one.values, 1.0)).fold(1.0, f64::max);
    let mut svg = format!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{}"
 font-family="sans-serif" font-size="12">
<rect width="100%" height="100%" fill="white"/>
"#,
        (rates.len() + 1) * BAR_HEIGHT,
    );
    for (row, one) in rates.iter().enumerate() {
        bar(&mut svg, row, one, most);
    }
    svg.push_str("</svg>\n");
    svg
}

fn bar(svg: &mut String, row: usize, one: &Measurement, most: f64) {
    let x = |value: f64| LABEL_WIDTH + value / most * BAR_WIDTH;
    let top = row * BAR_HEIGHT + BAR_HEIGHT / 2;
    let (middle, baseline) = (top + 8, top + 12);
    let (value, color) = (median(&one.values), color(&one.program));
    let label = match one.program.as_str() {
        "this" => one.what.clone(),
        other => format!("{}, {other}", one.what),
    };
    let (least, greatest) = (percentile(&one.values, 0.0), percentile(&one.values, 1.0));
    let _ = write!(
        svg,
        r##"<text x="{:.0}" y="{baseline}" text-anchor="end">{label}</text>
<rect x="{LABEL_WIDTH}" y="{top}" width="{:.1}" height="16" fill="{color}"/>
<line x1="{:.1}" y1="{middle}" x2="{:.1}" y2="{middle}" stroke="#222"/>
<text x="{:.1}" y="{baseline}">{} jobs/s</text>
"##,
        LABEL_WIDTH - 8.0,
        x(value) - LABEL_WIDTH,
        x(least),
        x(greatest),
        x(greatest) + 8.0,
        shown(value),
    );
}

fn color(program: &str) -> &'static str {
    match program {
        "this" => "#4a7fb5",
        "baseline" => "#a9c3dd",
        _ => "#c9c9c9",
    }
}
