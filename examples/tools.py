"""Python functions as tools: the model writes the call, we run it, the model sees the result."""

import json

from llcuda_ffi import Llama


def temperature(city: str) -> str:
    """The temperature in a city, now.

    Args:
        city: its name.
    """
    return f"21 degrees in {city}"


with Llama("smollm2-135m", n_ctx=2048, n_parallel=1) as llm:
    messages = [{"role": "user", "content": "How warm is it in Lima?"}]
    asked = llm.chat(messages, tools=[temperature], tool_choice="required", temperature=0, max_tokens=80)
    messages.append(asked.message)
    for call in asked.tool_calls:
        result = temperature(**json.loads(call.arguments))
        print(f"{call.name}({call.arguments}) → {result}")
        messages.append({"role": "tool", "tool_call_id": call.id, "name": call.name, "content": result})
    print(llm.chat(messages, tools=[temperature], tool_choice="none", temperature=0, max_tokens=40).text)
