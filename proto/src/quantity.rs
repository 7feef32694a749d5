//! Kubernetes quantities (`500m`, `128Mi`, `1e3`) as whole numbers: thousandths for CPU, units for
//! the rest, rounded up as Kubernetes does. Pure arithmetic on integers, no floating point.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// Why a text is not a quantity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$', got {0:?}"
)]
pub struct QuantityError(pub String);

/// Thousandths of a unit, rounded up: `1` is 1000, `250m` is 250, `1u` is 1.
pub fn parse_millis(text: &str) -> Result<i64, QuantityError> {
    scaled(text, 3).ok_or_else(|| QuantityError(text.to_owned()))
}

/// Whole units, rounded up: `1Ki` is 1024, `1500m` is 2.
pub fn parse_units(text: &str) -> Result<i64, QuantityError> {
    scaled(text, 0).ok_or_else(|| QuantityError(text.to_owned()))
}

/// CPU of a resource list in thousandths of a core; 0 where absent or malformed (validation
/// refuses malformed ones before they are stored).
pub fn cpu_millis(quantity: Option<&Quantity>) -> i64 {
    quantity.and_then(|q| parse_millis(&q.0).ok()).unwrap_or(0)
}

/// Bytes (or counts) of a resource list; 0 where absent or malformed.
pub fn units(quantity: Option<&Quantity>) -> i64 {
    quantity.and_then(|q| parse_units(&q.0).ok()).unwrap_or(0)
}

/// `1500` → `1500m`, `2000` → `2`.
pub fn format_millis(millis: i64) -> String {
    if millis % 1000 == 0 { (millis / 1000).to_string() } else { format!("{millis}m") }
}

/// Bytes with the largest binary suffix that keeps them whole: `134217728` → `128Mi`.
pub fn format_bytes(bytes: i64) -> String {
    let suffixes = ["", "Ki", "Mi", "Gi", "Ti", "Pi"];
    let mut value = bytes;
    let mut index = 0;
    while value != 0 && value % 1024 == 0 && index + 1 < suffixes.len() {
        value /= 1024;
        index += 1;
    }
    format!("{value}{}", suffixes[index])
}

/// `text` times 10^`places`, rounded away from zero; capped at `i64`'s range.
fn scaled(text: &str, places: i32) -> Option<i64> {
    let (negative, rest) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let number_end = rest.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(rest.len());
    let (number, suffix) = rest.split_at(number_end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
        return None;
    }
    let mantissa: i128 = format!("{whole}{fraction}").parse().ok()?;
    let (binary, decimal) = suffix_powers(suffix)?;
    let mut value = mantissa.checked_mul(1_i128.checked_shl(binary)?)?;
    let exponent = decimal + places - i32::try_from(fraction.len()).ok()?;
    if exponent >= 0 {
        value = value.checked_mul(10_i128.checked_pow(exponent.unsigned_abs())?)?;
    } else {
        let divisor = 10_i128.checked_pow(exponent.unsigned_abs())?;
        value = value.div_euclid(divisor) + i128::from(value.rem_euclid(divisor) != 0);
    }
    let value = if negative { -value } else { value };
    Some(i64::try_from(value).unwrap_or(if negative { i64::MIN } else { i64::MAX }))
}

/// Powers of (2, 10) that a suffix stands for.
fn suffix_powers(suffix: &str) -> Option<(u32, i32)> {
    Some(match suffix {
        "" => (0, 0),
        "n" => (0, -9),
        "u" => (0, -6),
        "m" => (0, -3),
        "k" => (0, 3),
        "M" => (0, 6),
        "G" => (0, 9),
        "T" => (0, 12),
        "P" => (0, 15),
        "E" => (0, 18),
        "Ki" => (10, 0),
        "Mi" => (20, 0),
        "Gi" => (30, 0),
        "Ti" => (40, 0),
        "Pi" => (50, 0),
        "Ei" => (60, 0),
        exponent => {
            let digits = exponent.strip_prefix(['e', 'E'])?;
            let power: i32 = digits.parse().ok()?;
            if power.abs() > 24 {
                return None;
            }
            (0, power)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table() {
        for (text, millis) in [
            ("1", Some(1000)),
            ("250m", Some(250)),
            ("0.5", Some(500)),
            (".5", Some(500)),
            ("1.", Some(1000)),
            ("1u", Some(1)),
            ("-2", Some(-2000)),
            ("1e3", Some(1_000_000)),
            ("1Ki", Some(1_024_000)),
            ("100E", Some(i64::MAX)),
            ("", None),
            ("m", None),
            ("1.2.3", None),
            ("1KiB", None),
            ("one", None),
        ] {
            assert_eq!(parse_millis(text).ok(), millis, "{text:?}");
        }
        assert_eq!(parse_units("1500m"), Ok(2));
        assert_eq!(parse_units("128Mi"), Ok(128 << 20));
    }

    proptest::proptest! {
        #[test]
        fn formatted_values_parse_back(value in 0_i64..1 << 40) {
            proptest::prop_assert_eq!(parse_millis(&format_millis(value)), Ok(value));
            proptest::prop_assert_eq!(parse_units(&format_bytes(value)), Ok(value));
        }

        #[test]
        fn any_text_is_answered(text in ".{0,24}") {
            let _ = parse_millis(&text);
        }
    }
}
