//! Kubernetes quantities as far as they are compared here. Pure.

/// An amount in thousandths: fine enough for CPU shares and volumes alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Amount(u128);

impl Amount {
    /// Reads a quantity that is not negative, such as `1Gi`, `500M`, `1e3` or `250m`.
    pub fn parse(text: &str) -> Option<Self> {
        let split = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
        let (number, suffix) = text.split_at(split);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() && fraction.is_empty() {
            return None;
        }
        let digits: u128 = format!("{whole}{fraction}").parse().ok()?;
        let scale = 10_u128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
        let thousandths = match suffix {
            "m" => 1,
            "" => 1000,
            "k" => 1000 * 1000,
            "M" => 1000 * 1000_u128.pow(2),
            "G" => 1000 * 1000_u128.pow(3),
            "T" => 1000 * 1000_u128.pow(4),
            "P" => 1000 * 1000_u128.pow(5),
            "E" => 1000 * 1000_u128.pow(6),
            "Ki" => 1000 << 10,
            "Mi" => 1000 << 20,
            "Gi" => 1000 << 30,
            "Ti" => 1000 << 40,
            "Pi" => 1000 << 50,
            "Ei" => 1000 << 60,
            exponent => {
                let power: u32 = exponent.strip_prefix(['e', 'E'])?.parse().ok()?;
                1000_u128.checked_mul(10_u128.checked_pow(power)?)?
            }
        };
        Some(Amount(digits.checked_mul(thousandths)?.div_ceil(scale)))
    }

    /// As whole bytes, rounded up; none above 2⁶⁴ − 1.
    pub fn bytes(self) -> Option<u64> {
        u64::try_from(self.0.div_ceil(1000)).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_written_differently_are_equal() {
        for (left, right) in
            [("1Gi", "1024Mi"), ("1", "1000m"), ("1.5Gi", "1536Mi"), ("1e3", "1k"), ("0.5", "500m"), (".5", "500m")]
        {
            assert_eq!(Amount::parse(left).expect(left), Amount::parse(right).expect(right), "{left} and {right}");
        }
        assert!(Amount::parse("1G") < Amount::parse("1Gi"));
    }

    #[test]
    fn quantities_in_bytes_are_rounded_up() {
        for (text, bytes) in
            [("64Mi", Some(64 << 20)), ("4096", Some(4096)), ("1m", Some(1)), ("0", Some(0)), ("16Ei", None)]
        {
            assert_eq!(Amount::parse(text).expect(text).bytes(), bytes, "{text}");
        }
    }

    #[test]
    fn text_that_is_no_quantity_is_none() {
        for text in ["", "Gi", "lots", "-1", "1 Gi", "1gi", ".", "1e99"] {
            assert_eq!(Amount::parse(text), None, "{text:?}");
        }
    }
}
