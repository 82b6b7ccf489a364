//! The one place where tests let time pass: between two looks at a condition, for a bounded time.

use std::time::{Duration, Instant};

const LOOKS: Duration = Duration::from_millis(100);
/// Of what is inside the same process, mostly.
const SOON: Duration = Duration::from_millis(5);

/// Whether something becomes true within this time.
pub fn holds_within(time: Duration, holds: impl FnMut() -> bool) -> bool {
    last_within(time, holds, |held| *held)
}

/// Asks until the answer is right or the time is over, and gives the last answer.
pub fn last_within<T>(time: Duration, mut ask: impl FnMut() -> T, right: impl Fn(&T) -> bool) -> T {
    let started = Instant::now();
    loop {
        let answer = ask();
        if right(&answer) || started.elapsed() > time {
            return answer;
        }
        std::thread::sleep(LOOKS);
    }
}

/// As [`holds_within`], for a condition that is asked for with others on the same threads; fails when the time is over.
pub async fn until<F>(what: &str, time: Duration, mut holds: impl FnMut() -> F)
where
    F: Future<Output = bool>,
{
    let held = async {
        while !holds().await {
            tokio::time::sleep(SOON).await;
        }
    };
    assert!(tokio::time::timeout(time, held).await.is_ok(), "never: {what}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_asks_until_the_answer_is_right_or_the_time_is_over() {
        let mut count = 0;
        let mut ask = || {
            count += 1;
            count
        };
        assert_eq!(last_within(Duration::from_secs(60), &mut ask, |n| *n == 2), 2);
        assert_eq!(last_within(Duration::ZERO, &mut ask, |_| false), 3);
        assert!(!holds_within(Duration::ZERO, || false));
    }
}
