//! The Prometheus text format, version 0.0.4: families of samples.

use std::fmt::{Display, Write};

/// What a family's samples are.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    Counter,
    Gauge,
    Histogram,
}

/// A page in the making.
#[derive(Debug)]
pub(crate) struct Page {
    families: Vec<Family>,
    /// Place of the one that samples are added to.
    present: usize,
    /// Labels that every sample carries.
    common: String,
}

#[derive(Debug)]
struct Family {
    name: &'static str,
    head: String,
    samples: String,
}

impl Page {
    /// `common`: as for [`Page::label`].
    pub(crate) fn new(common: &[(&str, &dyn Display)]) -> Self {
        Self {
            families: Vec::new(),
            present: 0,
            common: join(common),
        }
    }

    /// What every sample carries from here on. Label values must need no escaping; names of
    /// [`sim_core::name`] and numbers don't.
    pub(crate) fn label(&mut self, common: &[(&str, &dyn Display)]) {
        self.common = join(common);
    }

    /// Starts a family, or goes on with it; the samples that follow are its. (All samples of a family have to stand
    /// together.)
    pub(crate) fn family(&mut self, name: &'static str, kind: Kind, help: &str) -> &mut Self {
        let known = self.families.iter().position(|family| family.name == name);
        self.present = known.unwrap_or_else(|| {
            let kind = match kind {
                Kind::Counter => "counter",
                Kind::Gauge => "gauge",
                Kind::Histogram => "histogram",
            };
            self.families.push(Family {
                name,
                head: format!("# HELP {name} {help}\n# TYPE {name} {kind}\n"),
                samples: String::new(),
            });
            self.families.len() - 1
        });
        self
    }

    /// One sample of the present family.
    pub(crate) fn sample(
        &mut self,
        labels: &[(&str, &dyn Display)],
        value: impl Display,
    ) -> &mut Self {
        self.suffixed("", labels, value)
    }

    /// One sample of the present family with `suffix` to its name, as histograms have.
    pub(crate) fn suffixed(
        &mut self,
        suffix: &str,
        labels: &[(&str, &dyn Display)],
        value: impl Display,
    ) -> &mut Self {
        let own = join(labels);
        let comma = if own.is_empty() || self.common.is_empty() {
            ""
        } else {
            ","
        };
        let common = &self.common;
        if let Some(Family { name, samples, .. }) = self.families.get_mut(self.present) {
            let labels = match common.len() + own.len() {
                0 => String::new(),
                _ => format!("{{{common}{comma}{own}}}"),
            };
            // A string takes whatever is written.
            writeln!(samples, "{name}{suffix}{labels} {value}").unwrap_or_default();
        }
        self
    }

    pub(crate) fn finish(self) -> String {
        let text = |family: Family| family.head + &family.samples;
        self.families.into_iter().map(text).collect()
    }
}

fn join(labels: &[(&str, &dyn Display)]) -> String {
    labels
        .iter()
        .map(|(name, value)| format!("{name}=\"{value}\""))
        .collect::<Vec<_>>()
        .join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_family_reads_as_the_format_says() {
        let mut page = Page::new(&[("workload", &"web")]);
        page.family("x_total", Kind::Counter, "Things.")
            .sample(&[("kind", &"a")], 3)
            .sample(&[], 4);
        assert_eq!(
            page.finish(),
            "# HELP x_total Things.\n# TYPE x_total counter\n\
             x_total{workload=\"web\",kind=\"a\"} 3\nx_total{workload=\"web\"} 4\n"
        );
    }

    #[test]
    fn the_samples_of_a_family_stand_together_whoever_they_are_of() {
        let mut page = Page::new(&[]);
        for workload in ["a", "b"] {
            page.label(&[("workload", &workload)]);
            page.family("x_total", Kind::Counter, "X.").sample(&[], 1);
            page.family("y", Kind::Gauge, "Y.").sample(&[], 2);
        }
        page.label(&[]);
        page.family("x_total", Kind::Counter, "X.").sample(&[], 3);
        assert_eq!(
            page.finish(),
            "# HELP x_total X.\n# TYPE x_total counter\n\
             x_total{workload=\"a\"} 1\nx_total{workload=\"b\"} 1\nx_total 3\n\
             # HELP y Y.\n# TYPE y gauge\ny{workload=\"a\"} 2\ny{workload=\"b\"} 2\n"
        );
    }
}
