// The directories of checkpoints: which is the latest, which are kept, and what crashes leave behind.
#include "checkpoint_fixture.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void test_latest(void *unused) {
    (void)unused;
    char *out_dir = new_directory(), *latest = format_string("%s/latest", out_dir);
    Fixture *model = fixture_create(STORAGE_FLOAT32, small_shape);
    for (int64_t step = 10; step <= 30; step += 10) save_step(out_dir, model, step);
    check_latest(out_dir, 30, NULL);
    write_all(latest, "step_00000020\n", 14); // a user may edit it
    check_latest(out_dir, 20, NULL);
    check(unlink(latest) == 0, "cannot remove %s", latest);
    check_latest(out_dir, 30, NULL);
    write_all(latest, "nonsense", 8);
    check_latest(out_dir, 30, "latest does not name a checkpoint");
    write_all(latest, "step_00000020.tmp", 17);
    check_latest(out_dir, 30, "latest does not name a checkpoint");
    write_all(latest, "step_00000025", 13);
    check_latest(out_dir, 20, "latest names step_00000025, which does not exist");
    // If the checkpoint that `latest` names is damaged, an older one is preferred, then a newer one.
    write_all(latest, "step_00000020\n", 14);
    char *path = step_file(out_dir, 20, "config.json");
    check(truncate(path, 3) == 0, "cannot truncate %s", path);
    check_latest(out_dir, 10, "step_00000020 is damaged: config.json has 3 bytes");
    char *first = step_file(out_dir, 10, "trainer.json");
    check(truncate(first, 3) == 0, "cannot truncate %s", first);
    check_latest(out_dir, 30, "step_00000010 is damaged: trainer.json has 3 bytes");
    fixture_destroy(model);
    free(first);
    free(path);
    free(latest);
    free(out_dir);
}

static void test_retention(void *unused) {
    (void)unused;
    char *out_dir = new_directory();
    Fixture *model = fixture_create(STORAGE_FLOAT32, small_shape);
    SaveCall call = {out_dir, model, 0, {2, 30}, false};
    for (call.step = 10; call.step <= 80; call.step += 10) save(&call);
    check_listing(out_dir, "latest step_00000030 step_00000060 step_00000070 step_00000080");
    // A run resumed from an older checkpoint keeps its own checkpoints, and the newer ones of the earlier
    // run.
    call.step = 65;
    call.retention.keep = 1;
    save(&call);
    check_listing(out_dir, "latest step_00000030 step_00000060 step_00000065 step_00000070 step_00000080");
    check_latest(out_dir, 65, NULL);
    call.step = 90;
    call.retention.keep_every = 0;
    save(&call);
    check_listing(out_dir, "latest step_00000090");
    fixture_destroy(model);
    free(out_dir);
}

static void test_debris(void *unused) {
    (void)unused;
    char *out_dir = new_directory();
    Fixture *model = fixture_create(STORAGE_FLOAT32, small_shape);
    save_step(out_dir, model, 1);
    make_debris(out_dir, "step_00000002.tmp");
    make_debris(out_dir, "step_00000003.tmp");
    make_debris(out_dir, "step_00000001.old"); // its successor is in place
    make_debris(out_dir, "step_other");
    make_debris(out_dir, "step_4.tmp");
    check_latest(out_dir, 1, NULL);
    save_step(out_dir, model, 2);
    check_listing(out_dir, "latest step_00000001 step_00000002 step_4.tmp step_other");
    fixture_destroy(model);
    free(out_dir);
}

static void move_step(const char *out_dir, const char *from, const char *to) {
    char *source = format_string("%s/%s", out_dir, from), *target = format_string("%s/%s", out_dir, to);
    check(rename(source, target) == 0, "cannot rename %s", source);
    free(source);
    free(target);
}

static void test_replacement(void *unused) {
    (void)unused;
    char *out_dir = new_directory();
    Fixture *model = fixture_create(STORAGE_FLOAT32, small_shape);
    save_step(out_dir, model, 1);
    fixture_refill(model);
    save_step(out_dir, model, 1);
    check_listing(out_dir, "latest step_00000001");
    check_loads(out_dir, model);
    // The state after a crash between the two renames of a replacement.
    move_step(out_dir, "step_00000001", "step_00000001.old");
    make_debris(out_dir, "step_00000001.tmp");
    check_latest(out_dir, 1, "latest names step_00000001, which does not exist");
    save_step(out_dir, model, 2);
    check_listing(out_dir, "latest step_00000001 step_00000002");
    char *first = format_string("%s/step_00000001", out_dir);
    OpenCall call = {first, NULL, NULL};
    open_and_load(&call);
    fixture_destroy(model);
    free(first);
    free(out_dir);
}

void test_checkpoint_directory(void) {
    test_run("checkpoint: latest", test_latest, NULL);
    test_run("checkpoint: retention", test_retention, NULL);
    test_run("checkpoint: debris of crashes", test_debris, NULL);
    test_run("checkpoint: replacement", test_replacement, NULL);
}
