//! How long calls take: a log-normal distribution, as network services have it.

use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Times of calls, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Latency {
    /// Half take less.
    pub median_ms: f64,
    /// One in a hundred takes more.
    pub p99_ms: f64,
    /// None takes more.
    pub max_ms: f64,
}

/// The normal distribution's 99th percentile.
const Z_99: f64 = 2.326_347_874_040_841;

impl Latency {
    pub(crate) fn is_valid(&self) -> bool {
        self.median_ms >= 0.0
            && self.p99_ms >= self.median_ms
            && self.max_ms >= self.p99_ms
            && self.max_ms < 3.6e6
    }

    /// The time of one call, by a draw of the standard normal distribution.
    pub(crate) fn drawn(&self, normal: f64) -> Duration {
        if self.median_ms <= 0.0 {
            return Duration::ZERO;
        }
        let sigma = (self.p99_ms / self.median_ms).ln() / Z_99;
        Duration::from_secs_f64((self.median_ms * (sigma * normal).exp()).min(self.max_ms) / 1e3)
    }
}

/// Chances: xorshift64*, seeded. Not for secrets.
#[derive(Debug)]
pub(crate) struct Chances(u64);

impl Chances {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    /// 0 to 1, without 1.
    pub(crate) fn uniform(&mut self) -> f64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let bits = self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 11;
        #[expect(clippy::cast_precision_loss, reason = "53 bits are what a float holds")]
        let bits = bits as f64;
        bits / 9_007_199_254_740_992.0
    }

    /// Of the standard normal distribution (Box and Muller).
    pub(crate) fn normal(&mut self) -> f64 {
        let (u, v) = (1.0 - self.uniform(), self.uniform());
        (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()
    }

    /// Of the exponential distribution with this mean.
    pub(crate) fn exponential(&mut self, mean: Duration) -> Duration {
        mean.mul_f64(-(1.0 - self.uniform()).ln())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_are_below_the_median_and_one_in_a_hundred_is_above_the_99th() {
        let latency = Latency { median_ms: 20.0, p99_ms: 200.0, max_ms: 1000.0 };
        let mut chances = Chances::new(7);
        let mut drawn: Vec<f64> =
            (0..20_000).map(|_| latency.drawn(chances.normal()).as_secs_f64() * 1e3).collect();
        drawn.sort_by(f64::total_cmp);
        assert!((18.0..22.0).contains(&drawn[10_000]), "{}", drawn[10_000]);
        assert!((170.0..235.0).contains(&drawn[19_800]), "{}", drawn[19_800]);
        assert!(drawn[19_999] <= 1000.0);
    }
}
