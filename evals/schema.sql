-- The history database: derived from {stores}/history/<table>/<run_id>.parquet, rebuilt by evals/history.py, never edited.
-- One row of `run` per evaluated thing; metric, sample and loss belong to a run. history_file lists what was loaded.

CREATE TABLE history_schema (sha256 VARCHAR);
CREATE TABLE history_file (table_name VARCHAR, run_id VARCHAR);

CREATE TABLE run (
    run_id VARCHAR,               -- fingerprint of recipe, seeds and the digests of everything that was evaluated
    recipe VARCHAR,
    seeds VARCHAR,                -- what=seed, ...
    evaluated TIMESTAMP,          -- UTC, when the evaluation finished
    git_commit VARCHAR,
    lmms_task VARCHAR,
    harness VARCHAR,              -- evaluation harness and version
    history_fingerprint VARCHAR,  -- task file, data and harness: rows are comparable only inside it
    dataset_sha256 VARCHAR,
    task_sha256 VARCHAR,
    artifact VARCHAR,             -- step/fingerprint of the evaluation artifact
    inputs VARCHAR                -- JSON: input name -> step/fingerprint
);
CREATE TABLE metric (
    run_id VARCHAR, task VARCHAR, condition VARCHAR, metric VARCHAR, subgroup VARCHAR, value DOUBLE, ci_lo DOUBLE, ci_hi DOUBLE,
    n BIGINT, clusters BIGINT, stderr DOUBLE,
    kind VARCHAR                  -- score | floor | difference (paired)
);
CREATE TABLE sample (
    run_id VARCHAR, task VARCHAR, run_condition VARCHAR, doc_key VARCHAR, question_id BIGINT, picture VARCHAR, question VARCHAR,
    answer_type VARCHAR, target VARCHAR, prediction VARCHAR, caption VARCHAR, score DOUBLE, num_tokens BIGINT
);
CREATE TABLE loss (run_id VARCHAR, stage VARCHAR, step BIGINT, loss DOUBLE, lr DOUBLE, tokens BIGINT);

-- Every score with its interval, its sample count, the floors on the same questions beside it and the artifact it comes from.
CREATE VIEW leaderboard AS
SELECT
    run.recipe, metric.task, metric.condition, metric.subgroup, metric.value AS accuracy, metric.ci_lo, metric.ci_hi, metric.n,
    yes.value AS floor_always_yes, blind.value AS floor_blind_majority, run.artifact, run.seeds AS seed, run.evaluated AS time,
    run.history_fingerprint, metric.run_id
FROM metric
JOIN run USING (run_id)
LEFT JOIN metric AS yes
    ON yes.run_id = metric.run_id AND yes.task = metric.task AND yes.subgroup = metric.subgroup AND yes.metric = metric.metric
    AND yes.kind = 'floor' AND yes.condition = 'always_yes'
LEFT JOIN metric AS blind
    ON blind.run_id = metric.run_id AND blind.task = metric.task AND blind.subgroup = metric.subgroup AND blind.metric = metric.metric
    AND blind.kind = 'floor' AND blind.condition = 'blind_majority'
WHERE metric.kind = 'score' AND metric.metric = 'exact_match'
ORDER BY run.evaluated DESC, run.recipe, metric.run_id, metric.task, metric.condition, metric.subgroup <> 'all', metric.subgroup;

-- One row per run and condition (floors included), the question types side by side.
CREATE VIEW by_type AS
SELECT
    run.recipe, metric.task, metric.condition, metric.kind,
    max(value) FILTER (subgroup = 'all') AS "all", max(value) FILTER (subgroup = 'yes/no') AS yes_no,
    max(value) FILTER (subgroup = 'shape') AS shape, max(value) FILTER (subgroup = 'colour') AS colour,
    max(n) FILTER (subgroup = 'all') AS n, run.seeds AS seed, run.evaluated AS time, metric.run_id
FROM metric
JOIN run USING (run_id)
WHERE metric.metric = 'exact_match' AND metric.kind IN ('score', 'floor')
GROUP BY ALL
ORDER BY time DESC, recipe, metric.run_id, task, metric.kind DESC, condition;
