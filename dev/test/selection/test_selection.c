// Lighthouse attention: its settings, the selection, and the whole layer with the selection held fixed.
#include "dev/test/selection/tests.h"

#include <stdlib.h>

void test_lighthouse(Device *device) {
    // What needs no other device than float64's is tested once, with the CPU's default.
    if (device->ops->storage == STORAGE_FLOAT32) {
        Device *float64 = cpu_device_create(STORAGE_FLOAT64);
        test_run("Lighthouse settings that break a rule are refused", bad_settings_are_refused, NULL);
        test_run("Lighthouse settings are judged by the rules", settings_are_judged_by_the_rules, NULL);
        test_run("cpu float64: Lighthouse layer matches PyTorch", layer_matches_pytorch, NULL);
        test_run("cpu float64: Lighthouse layer has its gradient", layer_has_its_gradient, NULL);
        test_run("cpu float64: backward gather and scatter are transposes", backwards_are_transposes,
                 float64);
        test_run("cpu float64: Lighthouse layer is causal", layer_is_causal, float64);
        float64->destroy(float64);
    }
    static const struct {
        const char *name;
        void (*test)(void *device);
    } tests[] = {
        {"Lighthouse limits are known", device_knows_its_limits},
        {"published selections are reproduced", published_selections_are_reproduced},
        {"selections have their properties", selections_have_their_properties},
        {"ties go to the lower index", ties_go_to_the_lower_index},
        {"long chunks are streamed", long_chunks_are_streamed},
        {"as many picks as there is room for", most_picks_fit},
        {"backward gather and scatter are transposes", backwards_are_transposes},
        {"pieces of a sequence make the whole", pieces_make_the_whole},
        {"Lighthouse layer is causal", layer_is_causal},
        {"replayed picks give the same layer", replayed_picks_give_the_same},
        {"few picks differ from float64", few_picks_differ},
        {"Lighthouse layer repeats to the bit", layer_repeats_to_the_bit},
    };
    for (size_t i = 0; i < COUNT_OF(tests); i++) {
        char *name =
            format_string("%s %s: %s", device->kind, storage_dtype(device->ops->storage), tests[i].name);
        test_run(name, tests[i].test, device);
        free(name);
    }
}
