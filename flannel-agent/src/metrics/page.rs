//! The page as OpenMetrics text.

use std::fmt;

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet, text::encode},
    metrics::MetricType,
    registry::{Registry, Unit},
};

use super::metric::{Base, Kind, Metric};

/// Media type of the page.
pub const MEDIA_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Numbers, by metric and labels.
#[derive(Debug, Default)]
pub(super) struct Page(Vec<(&'static Metric, Vec<Sample>)>);

#[derive(Debug)]
struct Sample {
    labels: Vec<(&'static str, String)>,
    value: f64,
}

impl Page {
    /// Adds one number, of a metric whose numbers are added one after the other. `labels` are as many as the metric has.
    pub(super) fn add<const N: usize>(&mut self, metric: &'static Metric, labels: [&str; N], value: f64) {
        let names = metric.labels.iter().copied();
        let sample = Sample { labels: names.zip(labels.map(str::to_owned)).collect(), value };
        match self.0.last_mut() {
            Some((last, samples)) if std::ptr::eq(*last, metric) || *last == metric => samples.push(sample),
            _ => self.0.push((metric, vec![sample])),
        }
    }

    /// The text.
    pub(super) fn text(self) -> Result<String, fmt::Error> {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(self));
        let mut text = String::new();
        encode(&mut text, &registry)?;
        Ok(text)
    }
}

impl Collector for Page {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for (metric, samples) in &self.0 {
            let unit = match metric.base {
                Base::One => None,
                Base::Bytes => Some(Unit::Bytes),
                Base::Seconds => Some(Unit::Seconds),
            };
            let kind = match metric.kind {
                Kind::Counter => MetricType::Counter,
                Kind::Gauge => MetricType::Gauge,
                Kind::Info => MetricType::Info,
            };
            let mut family = encoder.encode_descriptor(metric.stem, metric.help, unit.as_ref(), kind)?;
            for sample in samples {
                match (metric.kind, sample.labels.is_empty()) {
                    (Kind::Info, _) => family.encode_info(&sample.labels)?,
                    (kind, true) => put(&mut family, kind, sample.value)?,
                    (kind, false) => put(&mut family.encode_family(&sample.labels)?, kind, sample.value)?,
                }
            }
        }
        Ok(())
    }
}

fn put(encoder: &mut MetricEncoder<'_>, kind: Kind, value: f64) -> fmt::Result {
    match kind {
        Kind::Counter => encoder.encode_counter::<NoLabelSet, f64, f64>(&value, None),
        Kind::Gauge | Kind::Info => encoder.encode_gauge(&value),
    }
}
