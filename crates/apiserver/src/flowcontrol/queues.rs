//! Who may go on, and in which order those who wait come to their turn. No clocks and no tasks: whoever is told to go on is
//! told through a channel.
//!
//! Each priority level has seats that are its own; what it does not need and may lend is used by others, as far as they may
//! borrow. Within a level, flows share queues, and the queues take turns.

use std::collections::{BTreeMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};

use tokio::sync::oneshot;

/// How a level is set up.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Settings {
    /// Its own seats.
    pub nominal: usize,
    /// How many of them others may use.
    pub lendable: usize,
    /// How many it may have in use with those of others.
    pub most: usize,
    /// `None`: nobody waits.
    pub queuing: Option<Queuing>,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Queuing {
    pub queues: usize,
    /// How many of the queues a flow may use.
    pub hand: usize,
    pub length: usize,
}

/// Why a request is turned away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    Limit,
    QueueFull,
}

/// What a request is told.
#[derive(Debug)]
pub(super) enum Told {
    Go,
    /// Its turn is told through the channel.
    Wait {
        ticket: Ticket,
        turn: oneshot::Receiver<()>,
    },
}

/// The place of one who waits.
#[derive(Clone, Debug)]
pub(super) struct Ticket {
    queue: usize,
    id: u64,
}

struct Waiter {
    id: u64,
    turn: oneshot::Sender<()>,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Waiter>,
    /// When its next request begins, in turns of the level.
    next: u64,
}

struct Level {
    settings: Settings,
    executing: usize,
    queues: Vec<Queue>,
    /// The turn that was last begun.
    turn: u64,
}

/// All limited levels, by name.
#[derive(Default)]
pub(super) struct Levels {
    levels: BTreeMap<String, Level>,
    last_id: u64,
}

impl Level {
    fn waiting(&self) -> usize {
        self.queues.iter().map(|queue| queue.waiting.len()).sum()
    }

    /// The queue whose turn it is.
    fn next_queue(&self) -> Option<usize> {
        let waiting = self.queues.iter().enumerate().filter(|(_, queue)| !queue.waiting.is_empty());
        waiting.min_by_key(|(i, queue)| (queue.next, *i)).map(|(i, _)| i)
    }
}

impl Levels {
    /// Sets the levels up. Those that are not named any more stay as they are until nobody is left there.
    pub(super) fn set(&mut self, settings: Vec<(String, Settings)>) {
        let names: Vec<String> = settings.iter().map(|(name, _)| name.clone()).collect();
        for (name, settings) in settings {
            let queues = settings.queuing.as_ref().map_or(0, |queuing| queuing.queues);
            let level = self.levels.entry(name).or_insert_with(|| Level {
                settings: settings.clone(),
                executing: 0,
                queues: Vec::new(),
                turn: 0,
            });
            // Queues that are one too many are emptied in their turn.
            if level.queues.len() < queues {
                level.queues.resize_with(queues, Queue::default);
            }
            level.settings = settings;
        }
        self.levels.retain(|name, level| names.contains(name) || level.executing > 0 || level.waiting() > 0);
        self.dispatch();
    }

    /// How many requests of a level go on, and how many wait.
    #[cfg(test)]
    pub(super) fn counts(&self, level: &str) -> (usize, usize) {
        self.levels.get(level).map_or((0, 0), |level| (level.executing, level.waiting()))
    }

    /// May one more request of a level go on? Seats that others are sure of are not touched.
    fn has_seat(&self, name: &str) -> bool {
        let Some(level) = self.levels.get(name) else { return true };
        let total: usize = self.levels.values().map(|l| l.settings.nominal).sum();
        let taken: usize = self.levels.values().map(|l| l.executing).sum();
        if taken >= total {
            return false;
        }
        if level.executing < level.settings.nominal {
            return true;
        }
        let kept: usize = self
            .levels
            .iter()
            .filter(|(other, _)| *other != name)
            .map(|(_, l)| (l.settings.nominal - l.settings.lendable).saturating_sub(l.executing))
            .sum();
        level.executing < level.settings.most && taken + kept < total
    }

    /// A request of a flow comes to a level.
    pub(super) fn arrive(&mut self, name: &str, flow: &(&str, &str)) -> Result<Told, Refusal> {
        let free = self.has_seat(name);
        let Some(level) = self.levels.get_mut(name) else { return Ok(Told::Go) };
        if free && level.waiting() == 0 {
            level.executing += 1;
            return Ok(Told::Go);
        }
        let Some(queuing) = &level.settings.queuing else { return Err(Refusal::Limit) };
        let hand = hand_of(flow, queuing);
        let Some(queue) = hand.into_iter().min_by_key(|i| level.queues[*i].waiting.len()) else {
            return Err(Refusal::Limit);
        };
        if level.queues[queue].waiting.len() >= queuing.length {
            return Err(Refusal::QueueFull);
        }
        self.last_id += 1;
        let id = self.last_id;
        let (sender, turn) = oneshot::channel();
        let chosen = &mut level.queues[queue];
        if chosen.waiting.is_empty() {
            // Who was away for a while has not saved up turns.
            chosen.next = chosen.next.max(level.turn);
        }
        chosen.waiting.push_back(Waiter { id, turn: sender });
        self.dispatch();
        Ok(Told::Wait { ticket: Ticket { queue, id }, turn })
    }

    /// One who waited gives up; whoever was told to go on meanwhile gives the seat back.
    pub(super) fn give_up(&mut self, name: &str, ticket: &Ticket) {
        let Some(level) = self.levels.get_mut(name) else { return };
        let queue = level.queues.get_mut(ticket.queue);
        let place = queue.as_ref().and_then(|queue| queue.waiting.iter().position(|w| w.id == ticket.id));
        match (queue, place) {
            (Some(queue), Some(place)) => drop(queue.waiting.remove(place)),
            _ => self.leave(name),
        }
    }

    /// A request is done.
    pub(super) fn leave(&mut self, name: &str) {
        if let Some(level) = self.levels.get_mut(name) {
            level.executing = level.executing.saturating_sub(1);
        }
        self.dispatch();
    }

    /// Lets go on who can.
    fn dispatch(&mut self) {
        let names: Vec<String> =
            self.levels.iter().filter(|(_, level)| level.waiting() > 0).map(|(name, _)| name.clone()).collect();
        for name in names {
            while self.has_seat(&name) {
                let Some(level) = self.levels.get_mut(&name) else { break };
                let Some(at) = level.next_queue() else { break };
                let queue = &mut level.queues[at];
                let Some(waiter) = queue.waiting.pop_front() else { break };
                level.turn = level.turn.max(queue.next);
                queue.next += 1;
                level.executing += 1;
                // Whoever does not wait any more has said so before: see `give_up`.
                let _ = waiter.turn.send(());
            }
        }
    }
}

/// The queues that a flow may use: few of many, so that one flow that floods its own leaves others a free one.
fn hand_of(flow: &(&str, &str), queuing: &Queuing) -> Vec<usize> {
    let mut deck: Vec<usize> = (0..queuing.queues).collect();
    let mut hand = Vec::with_capacity(queuing.hand);
    let mut hasher = DefaultHasher::new();
    flow.hash(&mut hasher);
    let mut luck = hasher.finish();
    while hand.len() < queuing.hand && !deck.is_empty() {
        let left = deck.len() as u64;
        // The remainder is less than the length of a deck.
        let at = usize::try_from(luck % left).unwrap_or_default();
        hand.push(deck.swap_remove(at));
        luck = (luck / left) ^ luck.rotate_left(17);
    }
    hand
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(nominal: usize, lendable: usize, most: usize, queues: usize) -> Settings {
        let queuing = (queues > 0).then_some(Queuing { queues, hand: 1.max(queues / 2), length: 10 });
        Settings { nominal, lendable, most, queuing }
    }

    fn levels(all: &[(&str, Settings)]) -> Levels {
        let mut levels = Levels::default();
        levels.set(all.iter().map(|(name, settings)| ((*name).to_owned(), settings.clone())).collect());
        levels
    }

    fn goes(told: &Result<Told, Refusal>) -> bool {
        matches!(told, Ok(Told::Go))
    }

    fn went(told: &mut Result<Told, Refusal>) -> bool {
        match told {
            Ok(Told::Wait { turn, .. }) => turn.try_recv().is_ok(),
            _ => false,
        }
    }

    #[test]
    fn what_is_lent_is_used_and_what_is_sure_is_kept() {
        let mut all = levels(&[("a", settings(2, 0, 10, 0)), ("b", settings(4, 2, 4, 0))]);
        // Two of its own, and the two that `b` lends.
        assert_eq!((0..6).filter(|_| goes(&all.arrive("a", &("f", "")))).count(), 4);
        assert_eq!((0..6).filter(|_| goes(&all.arrive("b", &("f", "")))).count(), 2);
        all.leave("a");
        assert!(goes(&all.arrive("b", &("f", ""))), "what was lent comes back when it is free");
        assert_eq!(all.arrive("a", &("f", "")).unwrap_err(), Refusal::Limit);
    }

    #[test]
    fn flows_take_turns() {
        let queuing = Some(Queuing { queues: 64, hand: 1, length: 10 });
        let mut all = levels(&[("a", Settings { nominal: 1, lendable: 0, most: 1, queuing })]);
        assert!(goes(&all.arrive("a", &("f", "x"))));
        let mut greedy: Vec<_> = (0..6).map(|_| all.arrive("a", &("f", "greedy"))).collect();
        let mut modest = all.arrive("a", &("f", "modest"));
        let mut turns = 0;
        while !went(&mut modest) {
            all.leave("a");
            turns += 1;
        }
        // Though it came after all of them.
        assert!(turns <= 2, "{turns}");
        assert!(greedy.iter_mut().map(went).filter(|went| *went).count() <= 1);
    }

    #[test]
    fn one_queue_is_first_come_first_served_and_has_an_end() {
        let mut all = levels(&[("a", settings(1, 0, 1, 1))]);
        assert!(goes(&all.arrive("a", &("f", ""))));
        let mut told: Vec<_> = (0..11).map(|_| all.arrive("a", &("f", ""))).collect();
        assert_eq!(told.pop().unwrap().unwrap_err(), Refusal::QueueFull);
        all.leave("a");
        assert!(went(&mut told[0]) && !went(&mut told[1]));
        assert_eq!(all.counts("a"), (1, 9));
    }

    #[test]
    fn who_gives_up_makes_room() {
        let mut all = levels(&[("a", settings(1, 0, 1, 1))]);
        assert!(goes(&all.arrive("a", &("f", ""))));
        let (first, mut second) = (all.arrive("a", &("f", "")), all.arrive("a", &("f", "")));
        let Ok(Told::Wait { ticket, .. }) = first else { panic!("it waits") };
        all.give_up("a", &ticket);
        assert_eq!(all.counts("a"), (1, 1));
        all.leave("a");
        assert!(went(&mut second));
        // One that gives up after it was told to go on gives the seat back.
        let Ok(Told::Wait { ticket, .. }) = second else { panic!("it waited") };
        all.give_up("a", &ticket);
        assert_eq!(all.counts("a"), (0, 0));
    }

    #[test]
    fn a_level_that_is_gone_ends_when_nobody_is_left() {
        let mut all = levels(&[("a", settings(1, 0, 1, 1))]);
        assert!(goes(&all.arrive("a", &("f", ""))));
        all.set(Vec::new());
        assert_eq!(all.counts("a"), (1, 0));
        all.leave("a");
        all.set(Vec::new());
        assert!(goes(&all.arrive("a", &("f", ""))), "nobody limits it any more");
    }

    #[test]
    fn hands_are_of_different_queues() {
        let queuing = Queuing { queues: 8, hand: 4, length: 1 };
        let mut hand = hand_of(&("s", "user"), &queuing);
        assert_eq!(hand, hand_of(&("s", "user"), &queuing));
        hand.sort_unstable();
        hand.dedup();
        assert_eq!(hand.len(), 4);
    }
}
