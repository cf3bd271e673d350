//! `concord classify`: images in, verdicts out.

mod outcome;
mod print;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use actix::Addr;
use concord_actors::{Classify, Router};
use concord_policy::Policy;
use futures::stream::{self, StreamExt};
use tokio_util::sync::CancellationToken;

use super::{
    EXIT_UNUSABLE, EnsembleArgs, TIME_LIMIT, choose_task, print_line, progress_bar, read_at_most, warn,
    with_engine,
};
use crate::config::ServerSection;
use crate::inputs::{Input, expand};
use crate::problem::{Problem, ProblemKind};
use crate::response::ClassifyResponse;
use crate::table::TableArgs;
use crate::telemetry::{RequestContext, Sampling};
use outcome::Outcome;

/// Classify images: answer a task for each of them.
#[derive(Debug, clap::Args)]
#[command(after_help = "Exit status: 0 when every image got a verdict, 1 when one did not,\n\
    2 when nothing could be run (a faulty configuration or a model that does not load).")]
pub struct ClassifyArgs {
    #[command(flatten)]
    ensemble: EnsembleArgs,
    /// The name of the task in ensemble.toml; optional if there is only one
    #[arg(long, short)]
    task: Option<String>,
    /// Print one JSON object a line, in the order of the arguments, failures included
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    table: TableArgs,
    /// Images, folders of images, or glob patterns in quotes
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
}

/// The number of images in flight: while a model runs on one, the next is decoded.
const IN_FLIGHT: usize = 2;

/// Classifies all images, and prints the verdicts in the order of the arguments.
pub fn run(args: &ClassifyArgs) -> ExitCode {
    let classified = args.ensemble.read().and_then(|ensemble| {
        let task = choose_task(&ensemble, args.task.as_deref())?;
        with_engine(&ensemble, Some(&task), async |engine| {
            // Not the configured policy: the planned one is without the models that are off.
            let plan = engine.plan();
            let policy = plan.task(&task).map_or(&ensemble.tasks()[&task], |planned| planned.policy());
            let server = ensemble.server();
            classify_all(args, &Context { server, router: engine.router(), task: &task, policy }).await
        })
    });
    classified.unwrap_or_else(|message| {
        warn(&message);
        ExitCode::from(EXIT_UNUSABLE)
    })
}

/// The task that all images of one call are asked, and who answers it.
struct Context<'a> {
    server: &'a ServerSection,
    router: Addr<Router>,
    task: &'a str,
    policy: &'a Policy,
}

async fn classify_all(args: &ClassifyArgs, context: &Context<'_>) -> ExitCode {
    let inputs = expand(&args.files);
    let progress = progress_bar(inputs.len());
    let start = Instant::now();
    let mut outcomes = Vec::new();
    let mut all_classified = true;
    let mut outcomes_in_order =
        stream::iter(inputs).map(|input| classify_one(input, context)).buffered(IN_FLIGHT);
    while let Some(outcome) = outcomes_in_order.next().await {
        all_classified &= outcome.result.is_ok();
        if args.json {
            print_line(&outcome.json());
        } else {
            outcomes.push(outcome);
        }
        progress.inc(1);
    }
    progress.finish_and_clear();
    if !args.json {
        print::table(context.task, context.policy, &outcomes, start.elapsed(), args.table.wide);
    }
    if all_classified { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

async fn classify_one(input: Input, context: &Context<'_>) -> Outcome {
    let request = Sampling::none().request("classify", None);
    let result = match input.fault {
        Some(fault) => Err(Problem::unreadable(&fault)),
        None => verdict_on(&input.path, context, &request).await,
    };
    Outcome { file: input.path.display().to_string(), request, task: context.task.to_owned(), result }
}

async fn verdict_on(
    path: &Path,
    context: &Context<'_>,
    request: &RequestContext,
) -> Result<ClassifyResponse, Problem> {
    let image = read_at_most(path, context.server.max_body_bytes)?.into();
    let question = Classify {
        task: context.task.to_owned(),
        image,
        deadline: Instant::now() + TIME_LIMIT,
        fresh: false,
        explain: false,
        trace: request.trace.clone(),
        client_left: CancellationToken::new(),
    };
    let lost = |_| Problem::new(ProblemKind::Internal, "the router did not answer");
    Ok(ClassifyResponse::new(request, &context.router.send(question).await.map_err(lost)??))
}
