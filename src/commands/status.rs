//! `fovea status`

use fovea_coordinator::client::status_of;
use fovea_coordinator::status::Status;

use crate::cli::StatusArgs;
use crate::exit::Ending;
use crate::show;

pub fn run(args: &StatusArgs) -> anyhow::Result<Ending> {
    let (status, live) = status_of(&args.run).map_err(fovea_trainer::Error::from)?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&status)?);
    } else {
        print(&status, live);
    }
    Ok(Ending::Finished)
}

fn print(status: &Status, live: bool) {
    let state = format!("{:?}", status.state).to_lowercase();
    let seen = if live || status.state.is_over() {
        ""
    } else {
        " when last seen: no coordinator answers"
    };
    println!("state        {state}{seen}");
    println!("why          {}", status.reason);
    println!(
        "epoch        {} of {}",
        (status.epoch + 1).min(status.epochs),
        status.epochs
    );
    println!("step         {}", status.step);
    println!(
        "samples      {} of {} in this epoch",
        status.cursor, status.samples_total
    );
    if let Some(loss) = status.loss {
        println!("loss         {loss:.4}");
    }
    println!("throughput   {:.1} patches/s", status.samples_per_s);
    if let Some(eta) = status.eta_s {
        println!("ETA          {}", show::duration(eta));
    }
    match &status.checkpoint {
        Some(c) => println!(
            "checkpoint   step {}: {}\n             weights_blake3 {}",
            c.step, c.path, c.weights_blake3
        ),
        None => println!("checkpoint   none yet"),
    }
    if let Some(last) = &status.last_epoch {
        let figures: Vec<String> = last
            .metrics
            .iter()
            .map(|(name, value)| format!("{name} {value:.3}"))
            .collect();
        println!("epoch {:<6} {}", last.epoch, figures.join("  "));
    }
    for rank in &status.ranks {
        println!("{}", show::rank_line(rank));
    }
    if status.ranks_left_out > 0 {
        println!("             and {} more ranks", status.ranks_left_out);
    }
    let turned = &status.turned;
    if turned.dropped_connections > 0 {
        println!(
            "turned away  {} connections: {} malformed frames, {} without the token",
            turned.dropped_connections, turned.malformed_frames, turned.refused_tokens
        );
    }
}
