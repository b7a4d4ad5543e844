//! Dates of release files, as in [RFC 5322](https://www.rfc-editor.org/rfc/rfc5322#section-3.3), in UTC only.

use std::fmt;

const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
const WEEKDAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
const DAY: u64 = 24 * 60 * 60;

/// Unix seconds, printed as `2026-09-12 07:55:41 UTC`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Utc(pub(crate) u64);

impl fmt::Display for Utc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (year, month, day) = date_of(self.0 / DAY);
        let second = self.0 % DAY;
        let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
        write!(f, "{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC")
    }
}

/// Parses a date such as `Sat, 12 Sep 2026 07:55:41 UTC` into Unix seconds. Years before 1970 are refused.
pub(crate) fn parse(text: &str) -> Option<u64> {
    let fields: Vec<&str> = text.split_ascii_whitespace().collect();
    let [weekday, day, month, year, clock, zone] = fields[..] else { return None };
    if !matches!(zone, "UTC" | "GMT" | "Z" | "+0000" | "-0000") {
        return None;
    }
    let month = MONTHS.iter().position(|name| *name == month)? + 1;
    let (year, day): (u64, u64) = (number(year)?, number(day)?);
    let mut parts = clock.split(':').map(number);
    let (hour, minute, second) = (parts.next()??, parts.next()??, parts.next()??);
    if parts.next().is_some() || !(1970..=9999).contains(&year) || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let days = days_before(year) + days_in_year_before(year, month) + day.checked_sub(1)?;
    // A day that its month does not have, or the wrong weekday, means that the date is not what was meant.
    if date_of(days) != (year, month as u64, day) || weekday.strip_suffix(',')? != WEEKDAYS[(days % 7) as usize] {
        return None;
    }
    Some(days * DAY + hour * 3600 + minute * 60 + second)
}

fn number(text: &str) -> Option<u64> {
    // `str::parse` would also take a sign.
    (text.len() <= 4 && text.bytes().all(|byte| byte.is_ascii_digit())).then(|| text.parse().ok())?
}

fn is_leap(year: u64) -> bool {
    year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
}

fn days_before(year: u64) -> u64 {
    let leap_days = |year: u64| year / 4 - year / 100 + year / 400;
    (year - 1970) * 365 + leap_days(year - 1) - leap_days(1969)
}

fn days_in_year_before(year: u64, month: usize) -> u64 {
    let lengths = [31, 28 + u64::from(is_leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30];
    lengths[..month - 1].iter().sum()
}

/// The year, month from 1 and day from 1 of a day counted from 1970-01-01.
fn date_of(days: u64) -> (u64, u64, u64) {
    // The quotient may be one year late, never early: a year has at least 365 days.
    let mut year = 1970 + days / 365;
    while days_before(year) > days {
        year -= 1;
    }
    let day = days - days_before(year);
    let month = (1..=12).rev().find(|month| days_in_year_before(year, *month) <= day).unwrap_or(1);
    (year, month as u64, day - days_in_year_before(year, month) + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        for (text, seconds, printed) in [
            ("Thu, 01 Jan 1970 00:00:00 UTC", 0, "1970-01-01 00:00:00 UTC"),
            ("Sat, 12 Sep 2026 07:55:41 UTC", 1_789_199_741, "2026-09-12 07:55:41 UTC"),
            ("Thu, 29 Feb 2024 23:59:59 +0000", 1_709_251_199, "2024-02-29 23:59:59 UTC"),
            ("Fri, 31 Dec 1999  3:04:05 GMT", 946_609_445, "1999-12-31 03:04:05 UTC"),
            ("Mon, 1 Mar 2100 00:00:00 UTC", 4_107_542_400, "2100-03-01 00:00:00 UTC"),
        ] {
            assert_eq!(parse(text), Some(seconds), "{text}");
            assert_eq!(Utc(seconds).to_string(), printed, "{text}");
        }
    }

    #[test]
    fn refused_dates() {
        for text in [
            "",
            "Sat, 12 Sep 2026 07:55:41",
            "Sat, 12 Sep 2026 07:55:41 CET",
            "Sun, 12 Sep 2026 07:55:41 UTC",
            "Sat 12 Sep 2026 07:55:41 UTC",
            "Sat, 31 Sep 2026 07:55:41 UTC",
            "Sat, 00 Sep 2026 07:55:41 UTC",
            "Sat, 12 sep 2026 07:55:41 UTC",
            "Sat, 12 Sep 2026 24:55:41 UTC",
            "Sat, 12 Sep 2026 07:55 UTC",
            "Sat, 12 Sep 2026 07:55:41:00 UTC",
            "Sat, +2 Sep 2026 07:55:41 UTC",
            "Sat, 12 Sep 1926 07:55:41 UTC",
            "2026-09-12 07:55:41 UTC",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
