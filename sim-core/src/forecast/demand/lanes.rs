//! Arithmetic in single precision, several numbers side by side.
//!
//! Loops run over arrays of fixed length and sums are added in a fixed order, so the compiler may keep
//! them in wide registers, and the bits are the same whether it does or not. Logarithm and exponential
//! are polynomials for the same reason, and because a forecast takes several dozen of them.

use core::ops::{Add, Div, Mul, Neg, Sub};

/// Numbers side by side: the levels, and one place more.
pub(super) const LANES: usize = 8;
pub(super) type Lanes = [f32; LANES];

/// Single precision, which is what everything uses, or double, in which tests compare what it does with others'
/// numbers.
pub(super) trait Real:
    Copy
    + PartialOrd
    + Neg<Output = Self>
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
{
    /// A number, rounded.
    fn of(x: f64) -> Self;
    /// The same number in double precision.
    fn wide(self) -> f64;
    /// Its root.
    fn sqrt(self) -> Self;

    fn max(self, other: Self) -> Self {
        if other > self { other } else { self }
    }

    fn abs(self) -> Self {
        self.max(-self)
    }
}

impl Real for f32 {
    fn of(x: f64) -> Self {
        x as f32
    }

    fn wide(self) -> f64 {
        f64::from(self)
    }

    fn sqrt(self) -> Self {
        libm::sqrtf(self)
    }
}

impl Real for f64 {
    fn of(x: f64) -> Self {
        x
    }

    fn wide(self) -> f64 {
        self
    }

    fn sqrt(self) -> Self {
        libm::sqrt(self)
    }
}

/// Adds products to sums, place by place. Not inlined, so that the compiler sees that the rows are different ones.
#[inline(never)]
pub(super) fn add_products<R: Real, const N: usize>(sums: &mut [R; N], a: &[R; N], b: &[R; N]) {
    for i in 0..N {
        sums[i] = sums[i] + a[i] * b[i];
    }
}

/// Takes products off a row and lets what is left grow.
#[inline(never)]
pub(super) fn take_products<R: Real, const N: usize>(
    row: &mut [R; N],
    a: &[R; N],
    b: &[R; N],
    grow: R,
) {
    for i in 0..N {
        row[i] = (row[i] - a[i] * b[i]) * grow;
    }
}

/// Scalar product; four sums side by side. Lengths are multiples of four.
pub(super) fn dot<R: Real, const N: usize>(a: &[R; N], b: &[R; N]) -> R {
    let mut sums = [R::of(0.0); 4];
    for (a, b) in a.chunks_exact(4).zip(b.chunks_exact(4)) {
        for l in 0..4 {
            sums[l] = sums[l] + a[l] * b[l];
        }
    }
    (sums[0] + sums[1]) + (sums[2] + sums[3])
}

/// The smaller one; no rule about NaN, which never comes here.
pub(super) fn least(a: f32, b: f32) -> f32 {
    if b < a { b } else { a }
}

/// Natural logarithm of a positive, normal number, to about 2⁻²².
pub(super) fn log(x: f32) -> f32 {
    let bits = x.to_bits();
    // From √½ to √2 the series below converges fast.
    let shifted = bits.wrapping_sub(0x3f35_04f3);
    let exponent = (shifted as i32) >> 23;
    let m = f32::from_bits((shifted & 0x007f_ffff) + 0x3f35_04f3);
    let s = (m - 1.0) / (m + 1.0);
    let q = s * s;
    let series = 2.0 + q * (0.666_666_7 + q * (0.4 + q * (0.285_714_3 + q * 0.222_222_2)));
    s * series + exponent as f32 * core::f32::consts::LN_2
}

/// Exponential of a number between −80 and 80, to about 2⁻²⁰ if it is small.
pub(super) fn exp(x: f32) -> f32 {
    let turns = x * core::f32::consts::LOG2_E;
    let whole = (turns + if turns < 0.0 { -0.5 } else { 0.5 }) as i32;
    let r = x - whole as f32 * core::f32::consts::LN_2;
    let series = 1.0
        + r * (1.0
            + r * (0.5
                + r * (0.166_666_67
                    + r * (0.041_666_67 + r * (0.008_333_334 + r * 0.001_388_889)))));
    f32::from_bits(((whole + 127) << 23) as u32) * series
}

/// The upper half of a number's bits, rounded to nearest: eight bits of fraction. What waits for
/// its sample is kept so.
pub(super) fn pack(x: f32) -> u16 {
    let bits = x.to_bits();
    (bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16) as u16
}

/// As many as there is room for.
pub(super) fn pack_all<const N: usize>(numbers: &[f32]) -> [u16; N] {
    let mut out = [0; N];
    for (out, &x) in out.iter_mut().zip(numbers) {
        *out = pack(x);
    }
    out
}

/// The same back; zeros after them.
pub(super) fn unpack_all<const N: usize>(halves: &[u16]) -> [f32; N] {
    let mut out = [0.0; N];
    for (out, &half) in out.iter_mut().zip(halves) {
        *out = unpack(half);
    }
    out
}

/// Back from [`pack`].
pub(super) fn unpack(half: u16) -> f32 {
    f32::from_bits(u32::from(half) << 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logarithm_and_exponential_agree_with_the_library() {
        for i in -400..=400_i32 {
            let x = 0.05 * i as f32;
            let e = libm::expf(x);
            assert!(
                x.abs() > 5.0 || (exp(x) - e).abs() <= 1e-6 * e,
                "{x}: {} {e}",
                exp(x)
            );
            assert!(
                (log(e) - x).abs() <= 4e-7 * x.abs().max(1.0),
                "{x}: {}",
                log(e)
            );
        }
        assert_eq!((log(1.0), exp(0.0)), (0.0, 1.0));
    }

    #[test]
    fn packing_keeps_eight_bits_and_rounds_to_nearest() {
        for x in [0.0, -0.0, 1.0, -2.5, 1e-20, 3.2e15] {
            let back = unpack(pack(x));
            assert!((back - x).abs() <= x.abs() / 256.0, "{x} {back}");
        }
        assert_eq!(unpack(pack(1.0 + 1.0 / 256.0 + 1e-4)), 1.0 + 1.0 / 128.0);
    }

    #[test]
    fn a_scalar_product_adds_all_of_it() {
        let a = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0];
        assert_eq!(dot(&a, &a), 204.0);
    }
}
