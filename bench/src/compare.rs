//! Is one of two worse? By rounds in which both were measured side by side.
//!
//! A round gives one value: the logarithm of the candidate's figure over the baseline's. Whatever slows a whole round
//! slows both and drops out. The test is Wilcoxon's signed-rank test, exact, one-sided, of "its centre is no higher
//! than what is ignored": it knows no normal distribution, and one wild round is one rank. Looks are taken at fixed
//! numbers of rounds, and the false alarm rate is divided among looks and figures (Bonferroni), so that it holds for the
//! whole comparison, however they hang together. As soon as nothing unwanted can be left, or an alarm is sure, the
//! rounds end.

use crate::median;

/// Chance of an alarm in a whole comparison of two that differ by no more than what is ignored; of two that are the
/// same it is much smaller.
pub const FALSE_ALARM_RATE: f64 = 0.05;

/// Numbers of rounds after which is judged.
pub const LOOKS: [usize; 3] = [8, 14, 20];

/// A figure that is compared; more of it is worse.
#[derive(Clone, Copy, Debug)]
pub struct Figure {
    /// Its key.
    pub name: &'static str,
    /// A rise by this share is none: 0.02 is 2 %.
    pub ignored: f64,
    /// A rise by this share has to be found; once it is ruled out, this figure needs no more rounds.
    pub unwanted: f64,
}

/// What is known of a figure.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Judgement {
    /// Candidate over baseline, as the middle of all pairs of rounds has it (Hodges and Lehmann).
    pub ratio: f64,
    /// Chance of rounds like these, or worse ones, if the rise is what is ignored.
    pub p_regressed: f64,
    /// Chance of rounds like these, or better ones, if the rise is what is unwanted.
    pub p_unwanted: f64,
    /// What there is to say.
    pub verdict: Verdict,
}

/// Of a figure, or of all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// What is unwanted is ruled out.
    Fine,
    /// More rounds may tell. After the last ones: no rise is proven.
    Open,
    /// It rose by more than what is ignored.
    Regressed,
}

impl Verdict {
    /// As it is written.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Fine => "fine",
            Self::Open => "no rise proven",
            Self::Regressed => "regressed",
        }
    }
}

/// Judges one of `figures` figures by the logarithms of its ratios.
#[must_use]
pub fn judge(figure: &Figure, figures: usize, logs: &[f64]) -> Judgement {
    let enough = FALSE_ALARM_RATE / (figures * LOOKS.len()) as f64;
    let beyond = |share: f64, sign: f64| {
        let shifted = logs.iter().map(|log| sign * (log - share.ln_1p()));
        signed_rank_p(&shifted.collect::<Vec<_>>())
    };
    let p_regressed = beyond(figure.ignored, 1.0);
    let p_unwanted = beyond(figure.unwanted, -1.0);
    let verdict = if p_regressed <= enough {
        Verdict::Regressed
    } else if p_unwanted <= enough {
        Verdict::Fine
    } else {
        Verdict::Open
    };
    Judgement {
        ratio: centre(logs).exp(),
        p_regressed,
        p_unwanted,
        verdict,
    }
}

/// Of all figures together: an alarm ends the rounds, and so does peace on all sides.
#[must_use]
pub fn overall(judgements: &[Judgement]) -> Verdict {
    let verdicts = judgements.iter().map(|judgement| judgement.verdict);
    verdicts.max().unwrap_or(Verdict::Open)
}

/// The median of the means of all pairs, each with itself too.
fn centre(values: &[f64]) -> f64 {
    let mut means = Vec::with_capacity(values.len() * (values.len() + 1) / 2);
    for (index, one) in values.iter().enumerate() {
        means.extend(values[index..].iter().map(|other| (one + other) / 2.0));
    }
    median(&means).unwrap_or_default()
}

/// Chance of a sum of the positive ranks as high as that of `values`, or higher, if each sign is a toss of a coin.
fn signed_rank_p(values: &[f64]) -> f64 {
    // Who is on neither side tells nothing.
    let mut sorted: Vec<f64> = values.iter().copied().filter(|v| *v != 0.0).collect();
    sorted.sort_by(|a, b| a.abs().total_cmp(&b.abs()));
    // Twice the ranks, so that those of ties, which share their mean, are whole numbers.
    let mut ranks = vec![0; sorted.len()];
    let mut begin = 0;
    while begin < sorted.len() {
        let same = sorted[begin..].iter();
        let count = same
            .take_while(|value| value.abs() == sorted[begin].abs())
            .count();
        ranks[begin..begin + count].fill(2 * begin + count + 1);
        begin += count;
    }
    let sum: usize = ranks
        .iter()
        .zip(&sorted)
        .filter(|(_, value)| **value > 0.0)
        .map(|(rank, _)| rank)
        .sum();
    // Share of all 2^n choices of signs that give each sum.
    let mut shares = vec![0.0; ranks.iter().sum::<usize>() + 1];
    shares[0] = 1.0;
    for rank in ranks {
        for at in (0..shares.len()).rev() {
            let with = if at >= rank { shares[at - rank] } else { 0.0 };
            shares[at] = (shares[at] + with) / 2.0;
        }
    }
    shares[sum..].iter().sum()
}

#[cfg(test)]
mod tests;
