//! Services, pods of one node, pods to the outside and short connections: each beside what else there is, and its goal.

use std::{collections::BTreeSet, fmt};

use serde::Serialize;

use super::{
    Case, Figure, Mode, Options, Report, Scenario, Workload,
    report::{align_right, new_table},
};

/// What a figure should come to, as a multiple of what it is held against.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Bound {
    AtLeast(f64),
    AtMost(f64),
    /// Better than what it is held against.
    Better,
    /// No goal: shown beside the others.
    Any,
}

/// What `case` should reach.
struct Goal {
    what: &'static str,
    case: Case,
    /// Whose figure its own is divided by; none where the figure itself is meant.
    against: Option<Case>,
    figures: &'static [(Figure, Bound)],
}

/// How far one goal was reached.
#[derive(Clone, Debug, Serialize)]
pub struct Reached {
    /// What is compared.
    pub what: String,
    /// What was measured.
    pub case: String,
    /// The figure.
    pub figure: &'static str,
    /// What it should come to.
    pub goal: String,
    /// What it came to; none where either side was not measured.
    pub value: Option<f64>,
    /// Whether that is enough; none where it was not measured, or is no goal.
    pub reached: Option<bool>,
}

/// All goals of one run.
#[derive(Clone, Debug)]
pub struct Goals(Vec<Reached>);

impl Bound {
    fn holds(self, value: f64, figure: Figure) -> Option<bool> {
        match self {
            Self::AtLeast(least) => Some(value >= least),
            Self::AtMost(most) => Some(value <= most),
            Self::Better if figure.more_is_better() => Some(value > 1.0),
            Self::Better => Some(value < 1.0),
            Self::Any => None,
        }
    }

    fn words(self, figure: Figure) -> String {
        match self {
            Self::AtLeast(least) => format!("≥ {least}"),
            Self::AtMost(most) => format!("≤ {most}"),
            Self::Better if figure.more_is_better() => "> 1".to_owned(),
            Self::Better => "< 1".to_owned(),
            Self::Any => "-".to_owned(),
        }
    }
}

fn goals() -> Vec<Goal> {
    use Bound::{Any, AtLeast, AtMost, Better};
    use Figure::{Connect, ConnectAgent, Tcp, TcpPingPong, Udp64, UdpPingPong};
    let flow = |scenario| Case::new(scenario, Mode::Flow);
    let kernel = |scenario| Some(Case::new(scenario, Mode::KernelRules));
    let flowtable = |scenario| Some(Case::new(scenario, Mode::Flowtable));
    let mut goals = Vec::new();
    let mut add = |what, scenario, against, figures| {
        goals.push(Goal { what, case: flow(scenario), against, figures });
    };
    for service in [Scenario::Service, Scenario::ServiceNftables] {
        add(
            "to the same pods without a Service",
            service,
            Some(flow(Scenario::Vxlan)),
            &[
                (Tcp, AtLeast(0.97)),
                (Udp64, AtLeast(0.92)),
                (TcpPingPong, AtMost(1.06)),
                (UdpPingPong, AtMost(1.06)),
            ],
        );
        add(
            "to the kernel's path",
            service,
            kernel(service),
            &[
                (Tcp, AtLeast(1.4)),
                (Udp64, AtLeast(2.0)),
                (TcpPingPong, AtMost(0.62)),
                (UdpPingPong, AtMost(0.62)),
                (Connect, AtLeast(1.25)),
            ],
        );
        add(
            "to an nft flowtable",
            service,
            flowtable(service),
            &[(Tcp, Better), (Udp64, Better), (TcpPingPong, Better), (UdpPingPong, Better)],
        );
    }
    add("to the kernel's path", Scenario::Vxlan, kernel(Scenario::Vxlan), &[(Connect, AtLeast(1.4))]);
    add(
        "to bridge and netfilter",
        Scenario::SameNode,
        kernel(Scenario::SameNode),
        &[(Tcp, AtLeast(1.1)), (Udp64, AtLeast(1.5)), (TcpPingPong, AtMost(0.7)), (UdpPingPong, AtMost(0.7))],
    );
    const OUTSIDE: &[(Figure, Bound)] =
        &[(Tcp, Any), (Udp64, Any), (TcpPingPong, Any), (UdpPingPong, Any), (Connect, Any)];
    add("to the kernel's path", Scenario::Outside, kernel(Scenario::Outside), OUTSIDE);
    add("to an nft flowtable", Scenario::Outside, flowtable(Scenario::Outside), OUTSIDE);
    for scenario in [Scenario::Vxlan, Scenario::Service] {
        // 1 % of a CPU at 5000 connections a second.
        add("itself", scenario, None, &[(ConnectAgent, AtMost(2.0))]);
    }
    goals
}

/// What must be measured for these goals, `rounds` times over `seconds`. What cannot be built, such as an nft flowtable
/// where the kernel has none, is named by the report.
pub fn options(rounds: usize, seconds: u32) -> Options {
    let goals = goals();
    let cases: BTreeSet<Case> =
        goals.iter().flat_map(|goal| [Some(goal.case), goal.against]).flatten().collect();
    let wanted = |workload: &Workload| {
        let mut figures = goals.iter().flat_map(|goal| goal.figures);
        figures.any(|(figure, _)| workload.figures().contains(figure))
    };
    Options {
        cases: cases.into_iter().collect(),
        workloads: Workload::EACH.into_iter().filter(wanted).collect(),
        rounds,
        seconds,
        all_or_nothing: false,
    }
}

impl Goals {
    /// What `report` says of each.
    pub fn of(report: &Report) -> Self {
        let reached = |goal: &Goal| {
            let Goal { what, case, against, .. } = *goal;
            let judge = |&(figure, bound): &(Figure, Bound)| {
                let own = report.median(case, figure);
                let value = match against {
                    None => own,
                    Some(other) => own.zip(report.median(other, figure)).map(|(own, other)| own / other),
                };
                Reached {
                    what: what.to_owned(),
                    case: case.to_string(),
                    figure: figure.title(),
                    goal: bound.words(figure),
                    value,
                    reached: value.and_then(|value| bound.holds(value, figure)),
                }
            };
            goal.figures.iter().map(judge).collect::<Vec<_>>()
        };
        Self(goals().iter().flat_map(reached).collect())
    }

    /// Each of them.
    pub fn all(&self) -> &[Reached] {
        &self.0
    }
}

impl fmt::Display for Goals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = new_table();
        table.set_header(["measured", "as a multiple", "figure", "goal", "value", ""]);
        for Reached { what, case, figure, goal, value, reached } in &self.0 {
            table.add_row([
                case.clone(),
                what.clone(),
                (*figure).to_owned(),
                goal.clone(),
                value.map_or("not measured".to_owned(), |value| format!("{value:.2}")),
                match reached {
                    Some(true) => "reached".to_owned(),
                    Some(false) => "MISSED".to_owned(),
                    None => String::new(),
                },
            ]);
        }
        align_right(&mut table);
        write!(f, "{table}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_goal_is_measured() {
        let options = options(1, 1);
        for goal in goals() {
            for (figure, _) in goal.figures {
                let measured = options.workloads.iter().any(|workload| workload.figures().contains(figure));
                assert!(measured, "{}: {}", goal.case, figure.title());
            }
            for case in [Some(goal.case), goal.against].into_iter().flatten() {
                assert!(options.cases.contains(&case), "{case}");
            }
        }
    }

    #[test]
    fn better_is_more_of_rates_and_less_of_times() {
        assert_eq!(Bound::Better.holds(1.1, Figure::Tcp), Some(true));
        assert_eq!(Bound::Better.holds(1.0, Figure::Tcp), Some(false));
        assert_eq!(Bound::Better.holds(0.9, Figure::TcpPingPong), Some(true));
        assert_eq!(Bound::Better.holds(1.1, Figure::TcpPingPong), Some(false));
        assert_eq!(Bound::AtLeast(1.4).holds(1.4, Figure::Connect), Some(true));
        assert_eq!(Bound::AtMost(0.7).holds(0.71, Figure::UdpPingPong), Some(false));
        assert_eq!(Bound::Any.holds(0.1, Figure::Tcp), None);
    }
}
